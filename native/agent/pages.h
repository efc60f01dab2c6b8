/* Pages that a fork left shared: a clone of the template would fault on each it writes to, at the price of a copy. */
#ifndef RUNDCTL_AGENT_PAGES_H
#define RUNDCTL_AGENT_PAGES_H

/* Gives this process pages of its own wherever it may write. Nothing is lost without but time, so there is no error. */
void pages_own(void);

#endif
