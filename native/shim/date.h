/* The guest's date is the host's. */
#ifndef RUNDCTL_SHIM_DATE_H
#define RUNDCTL_SHIM_DATE_H

#include "shim.h"

/* `shim->date` can be read once the host's date was set; -1 if there is no such descriptor, and then the guest is not told. */
void date_watch(struct shim *shim);
void date_serve(struct shim *shim);
void date_tell(struct shim *shim);

#endif
