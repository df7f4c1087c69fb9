/* The HTTP side of the admin in a build without libmicrohttpd. */
#include "admin/admin.h"

int admin_http_bind(struct admin *admin, const char *address, struct text *error)
{
	(void)admin;
	text_add(error, "cannot listen on '%s' for HTTP: this build has no HTTP", address);
	return -1;
}

int admin_http_fd(struct admin *admin, int fd, struct text *error)
{
	(void)admin;
	text_add(error, "cannot listen on descriptor %d for HTTP: this build has no HTTP", fd);
	return -1;
}

const char *admin_http_address(const struct admin *admin)
{
	(void)admin;
	return NULL;
}

bool admin_start(struct admin *admin, struct text *error)
{
	(void)admin;
	(void)error;
	return true;
}

void admin_stop(struct admin *admin)
{
	(void)admin;
}
