# The picture of bench.tsv; see chart.
set terminal svg size 1000,500 background rgb 'white'
set output folder . '/bench.svg'
set datafile separator tab
set title 'Rate as a fraction of a bare socket server'
set style data points
set pointsize 1.5
set yrange [0:*]
set ylabel 'fraction of the floor'
set grid y
set key outside
set xrange [-0.5:7.5]
# A case stands where its name does in this list; the others are no matter of rates.
cases = '|rtt|pipe 1|pipe 16|fan 1|fan 10|fan 100|request 1|request 16|'
set xtics ('rtt' 0, 'pipe 1' 1, 'pipe 16' 2, 'fan 1' 3, 'fan 10' 4, 'fan 100' 5, \
	'request 1' 6, 'request 16' 7)
before(name) = substr(cases, 1, strstrt(cases, '|' . name . '|'))
bars(text) = sum [i=1:strlen(text)] (text[i:i] eq '|')
place(name) = strstrt(cases, '|' . name . '|') > 0 ? bars(before(name)) - 1 : NaN
plot for [peer in 'liminald redis nats mosquitto'] folder . '/bench.tsv' \
	using (strcol(2) eq peer ? place(strcol(1)) : NaN):4 title peer
