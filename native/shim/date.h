/* The guest's date is the host's. */
#ifndef RUNDCTL_SHIM_DATE_H
#define RUNDCTL_SHIM_DATE_H

#include "shim.h"

/* A descriptor that can be read once the host's date was set; -1 if there is none, and then the guest is not told. */
int date_watch(void);
void date_serve(struct shim *shim);
void date_tell(struct shim *shim);

#endif
