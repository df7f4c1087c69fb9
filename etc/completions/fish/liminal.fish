# fish completion for liminal(1), made by "liminal --completions fish"
complete -c liminal -n '__fish_use_subcommand' -s s -l server -r -d 'HOST:PORT or the path of a socket (LIMINAL_SERVER)'
complete -c liminal -n '__fish_use_subcommand' -s T -l token-file -r -d 'the token is the content of FILE (or LIMINAL_TOKEN)'
complete -c liminal -n '__fish_use_subcommand' -l json -d 'output for programs, one object a line'
complete -c liminal -n '__fish_use_subcommand' -s V -l version -d 'print the version'
complete -c liminal -n '__fish_use_subcommand' -s h -l help -d 'print this'
complete -c liminal -f -n __fish_use_subcommand -a pub -d 'publish PAYLOAD, or standard input, to a channel'
complete -c liminal -n '__fish_seen_subcommand_from pub' -s k -l key -r -d 'idempotency key: a repeat is not delivered again'
complete -c liminal -n '__fish_seen_subcommand_from pub' -s l -l lines -d 'each line of standard input is a message'
complete -c liminal -f -n __fish_use_subcommand -a sub -d 'print the messages of channels'
complete -c liminal -n '__fish_seen_subcommand_from sub' -s c -l count -r -d 'leave after N messages'
complete -c liminal -n '__fish_seen_subcommand_from sub' -s w -l wait -r -d 'the longest wait for each message; then status 4'
complete -c liminal -n '__fish_seen_subcommand_from sub' -s 0 -l null -d 'end each message with a NUL instead of a newline'
complete -c liminal -n '__fish_seen_subcommand_from sub' -s f -l format -r -d '%c channel, %p payload, %i id, %n number, %m missed, %r again'
complete -c liminal -n '__fish_seen_subcommand_from sub' -s r -l reconnect -d 'connect again when the connection is lost'
complete -c liminal -n '__fish_seen_subcommand_from sub' -s C -l consumer -r -d 'durable: go on where this consumer is, and accept'
complete -c liminal -n '__fish_seen_subcommand_from sub' -s F -l from -r -d 'durable: begin with new, all, a sequence, or a time'
complete -c liminal -n '__fish_seen_subcommand_from sub' -s m -l manual -d 'answers to a consumer come from standard input'
complete -c liminal -f -n __fish_use_subcommand -a request -d 'send PAYLOAD, or standard input, to a worker and print the reply'
complete -c liminal -n '__fish_seen_subcommand_from request' -s w -l wait -r -d 'the longest wait for the reply; then status 4'
complete -c liminal -f -n __fish_use_subcommand -a worker -d 'run a command for each request: standard input in, standard output out'
complete -c liminal -n '__fish_seen_subcommand_from worker' -s n -l namespace -r -d 'serve this namespace only'
complete -c liminal -n '__fish_seen_subcommand_from worker' -s a -l activity -r -d 'serve this activity only'
complete -c liminal -n '__fish_seen_subcommand_from worker' -s j -l jobs -r -d 'how many commands may run at once (1)'
complete -c liminal -n '__fish_seen_subcommand_from worker' -s i -l identity -r -d 'name of the worker (liminal@HOST:PID)'
complete -c liminal -n '__fish_seen_subcommand_from worker' -s m -l max-reply -r -d 'the largest reply (16777194)'
complete -c liminal -f -n __fish_use_subcommand -a queue -d 'run a command for each message of a durable channel'
complete -c liminal -n '__fish_seen_subcommand_from queue' -s j -l jobs -r -d 'how many commands may run at once (1)'
complete -c liminal -n '__fish_seen_subcommand_from queue' -s C -l consumer -r -d 'the consumer whose work is shared (queue)'
complete -c liminal -n '__fish_seen_subcommand_from queue' -s F -l from -r -d 'where a new consumer begins: new, all, a sequence, a time'
complete -c liminal -f -n __fish_use_subcommand -a dead -d 'list the messages of a dead-letter channel, or put them back'
complete -c liminal -n '__fish_seen_subcommand_from dead' -s c -l count -r -d 'no more than N messages'
complete -c liminal -n '__fish_seen_subcommand_from dead' -s F -l from -r -d 'begin with this one'
complete -c liminal -n '__fish_seen_subcommand_from dead' -s p -l put-back -r -d 'publish it where it came from; or all of them'
complete -c liminal -n '__fish_seen_subcommand_from dead' -s w -l wait -r -d 'the longest wait for the answer; then status 4'
complete -c liminal -f -n __fish_use_subcommand -a ping -d 'measure round trips to the server'
complete -c liminal -n '__fish_seen_subcommand_from ping' -s c -l count -r -d 'leave after N pings'
complete -c liminal -n '__fish_seen_subcommand_from ping' -s i -l interval -r -d 'time between two pings (1)'
complete -c liminal -n '__fish_seen_subcommand_from ping' -s w -l wait -r -d 'the longest wait for each answer; then status 4'
complete -c liminal -f -n __fish_use_subcommand -a bench -d 'measure rate and latency: pub CHANNEL, fan CHANNEL, request QUEUE'
complete -c liminal -n '__fish_seen_subcommand_from bench' -s t -l time -r -d 'leave after this time (5)'
complete -c liminal -n '__fish_seen_subcommand_from bench' -s c -l count -r -d 'leave after N messages or requests'
complete -c liminal -n '__fish_seen_subcommand_from bench' -s b -l bytes -r -d 'size of a payload (128)'
complete -c liminal -n '__fish_seen_subcommand_from bench' -s n -l number -r -d 'how many publishers, subscribers or requesters (1)'
complete -c liminal -n '__fish_seen_subcommand_from bench' -s o -l outstanding -r -d 'messages without an answer, or not delivered yet (256)'
complete -c liminal -f -n '__fish_seen_subcommand_from bench' -a pub
complete -c liminal -f -n '__fish_seen_subcommand_from bench' -a fan
complete -c liminal -f -n '__fish_seen_subcommand_from bench' -a request
complete -c liminal -f -n __fish_use_subcommand -a ctl -d 'look into the server, or tell it something, over its control socket'
complete -c liminal -n '__fish_seen_subcommand_from ctl' -s w -l wait -r -d 'the longest wait for the answer; then status 4'
complete -c liminal -f -n '__fish_seen_subcommand_from ctl' -a ping
complete -c liminal -f -n '__fish_seen_subcommand_from ctl' -a stats
complete -c liminal -f -n '__fish_seen_subcommand_from ctl' -a connections
complete -c liminal -f -n '__fish_seen_subcommand_from ctl' -a channels
complete -c liminal -f -n '__fish_seen_subcommand_from ctl' -a workers
complete -c liminal -f -n '__fish_seen_subcommand_from ctl' -a consumers
complete -c liminal -f -n '__fish_seen_subcommand_from ctl' -a consumer-rm
complete -c liminal -f -n '__fish_seen_subcommand_from ctl' -a close
complete -c liminal -f -n '__fish_seen_subcommand_from ctl' -a drain
complete -c liminal -f -n __fish_use_subcommand -a top -d 'watch connections, channels and queues'
complete -c liminal -n '__fish_seen_subcommand_from top' -s d -l delay -r -d 'time between two looks (1)'
