/* Words for the person who debugs a guest. Never anything secret. */
#ifndef RUNDCTL_AGENT_LOG_H
#define RUNDCTL_AGENT_LOG_H

/* To the kernel's log from now on, and so to the console; before that to stderr. */
void log_to_kernel(void);
void log_line(const char *text);
void log_error(const char *what, int error);

#endif
