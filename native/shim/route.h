/* Messages of clients and of the agent: what each asks for. */
#ifndef RUNDCTL_SHIM_ROUTE_H
#define RUNDCTL_SHIM_ROUTE_H

#include "shim.h"

void route_client(struct shim *shim, struct client *client, const struct message *message);
void route_agent(struct shim *shim, const struct message *message);

#endif
