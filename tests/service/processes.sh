# For the stubs beside this: what the systems' own rc.subr ask pgrep(1), in the way of whatever
# system the tests run on. A zombie counts as gone: nobody may be there to bury it.

# arguments PID
arguments()
{
	if [ -d /proc/self ]; then
		tr '\0' ' ' 2>/dev/null <"/proc/$1/cmdline"
	else
		ps -o args= -p "$1"
	fi
}

# processes PROGRAM ARGUMENTS: the ids of those whose command line is exactly that.
processes()
{
	if [ -d /proc/self ]; then
		grep -lsF "$1" /proc/[0-9]*/cmdline | tr -dc '0-9\n'
	else
		ps -axo pid=,args= | grep -F "$1" | awk '{ print $1 }'
	fi | while read -r one; do
		[ "$(arguments "$one" | sed 's/ *$//')" != "$1${2:+ $2}" ] || echo "$one"
	done
}

# wait_for PID SECONDS: until that process is gone; fails when it is still there.
wait_for()
{
	tries=$(($2 * 20))
	while [ -n "$(arguments "$1")" ] && [ $tries -gt 0 ]; do
		tries=$((tries - 1))
		sleep 0.05
	done
	[ -z "$(arguments "$1")" ]
}
