#include "admin/admin.h"

#include <stdlib.h>

#include <jansson.h>

#include "admin/admin_priv.h"

struct admin *admin_new(struct net *net, struct broker *broker, int64_t started_ms)
{
	struct admin *admin = calloc(1, sizeof(*admin));

	if (admin == NULL)
		return NULL;
	admin->magic = ADMIN_MAGIC;
	admin->net = net;
	admin->broker = broker;
	admin->started_ms = started_ms;

	/* Now, while the process may still open the system's source of random numbers. */
	json_object_seed(0);

	const struct broker_control control = {
		.known = control_known,
		.answer = control_answer,
		.context = admin,
	};
	broker_set_control(broker, &control);
	return admin;
}

void admin_free(struct admin **admin)
{
	if (*admin == NULL)
		return;
	ASSERT_MAGIC(*admin, ADMIN_MAGIC);
	admin_stop(*admin);
	(*admin)->magic = 0;
	free(*admin);
	*admin = NULL;
}
