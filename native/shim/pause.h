/* PAUSE and RESUME of a client, and what QEMU says to them. */
#ifndef RUNDCTL_SHIM_PAUSE_H
#define RUNDCTL_SHIM_PAUSE_H

#include "shim.h"

void pause_request(struct shim *shim, struct client *client, const struct message *message);
void pause_serve(struct shim *shim);

#endif
