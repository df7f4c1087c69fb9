# The picture of scale.tsv; see chart.
set terminal svg size 1000,500 background rgb 'white'
set output folder . '/scale.svg'
set datafile separator tab
set datafile missing NaN # else lines end at the rows of other series
set title 'CPU time of liminald per message'
set style data linespoints
set logscale xy
set xrange [0.8:*]
set xlabel 'connections, channels, subscribers, bytes of payload, pending requests'
set ylabel 'microseconds'
set grid
set key outside
series = 'connections channels subscribers payload pending'
is_of(text, name) = strcol(2) eq 'liminald' && word(text, 1) eq name
plot for [name in series] folder . '/scale.tsv' \
	using (is_of(strcol(1), name) ? real(word(strcol(1), 2)) : NaN):5 title name
