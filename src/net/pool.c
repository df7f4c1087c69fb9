/*
 * The pool of session threads: one per connection, started on demand. A thread whose connection
 * has ended waits for the next one; a few are kept, the others end.
 */
#include "net/net_priv.h"

#include <signal.h>

/* How many threads wait without a connection. */
#define POOL_WARM 16

/* The next connection for an idle thread; NULL when the thread is to end. */
static struct conn *pool_next_locked(struct net *net)
{
	struct conn *conn;

	if (net->idle_threads >= POOL_WARM)
		return NULL;
	net->idle_threads++;
	while (net->ready_count == 0 && !net->stopping)
		cond_wait(&net->ready_changed, &net->lock);
	net->idle_threads--;
	if (net->ready_count == 0)
		return NULL;
	conn = LIST_ENTRY(net->ready.next, struct conn, in_ready);
	list_remove(&conn->in_ready);
	net->ready_count--;
	return conn;
}

static void *pool_thread(void *argument)
{
	struct conn *conn = argument;
	struct net *net = conn->net;
	sigset_t interrupt;

	sigemptyset(&interrupt);
	sigaddset(&interrupt, NET_SIGNAL);
	pthread_sigmask(SIG_UNBLOCK, &interrupt, NULL);
	while (conn != NULL) {
		session_run(conn);
		conn_unref(&conn);
		mutex_lock(&net->lock);
		conn = pool_next_locked(net);
		if (conn == NULL) {
			net->threads--;
			cond_broadcast(&net->changed);
		}
		mutex_unlock(&net->lock);
	}
	return NULL;
}

bool pool_run(struct net *net, struct conn *conn)
{
	bool warm;

	mutex_lock(&net->lock);
	warm = net->idle_threads > net->ready_count;
	if (warm) {
		list_append(&net->ready, &conn->in_ready);
		net->ready_count++;
		cond_signal(&net->ready_changed);
	} else {
		net->threads++;
	}
	mutex_unlock(&net->lock);
	if (warm || thread_start(NULL, pool_thread, conn) == 0)
		return true;
	mutex_lock(&net->lock);
	net->threads--;
	cond_broadcast(&net->changed);
	mutex_unlock(&net->lock);
	return false;
}

void pool_stop(struct net *net)
{
	mutex_lock(&net->lock);
	net->stopping = true;
	cond_broadcast(&net->ready_changed);
	while (net->threads > 0)
		cond_wait(&net->changed, &net->lock);
	mutex_unlock(&net->lock);
}
