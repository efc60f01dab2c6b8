/* From the kernel's hand-over to a guest that can serve. */
#ifndef RUNDCTL_AGENT_BOOT_H
#define RUNDCTL_AGENT_BOOT_H

/* Makes the guest's root, loads the modules and opens the agent's port: its descriptor, or -errno and a line in the log. */
int boot(void);
/* Ends the VM (QEMU runs with -no-reboot). */
void power_off(void) __attribute__((noreturn));

#endif
