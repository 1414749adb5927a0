/* TCP ports of this host's network namespace, for connections that are about to be restored. Both
 * functions may be called by any thread; rewarm_tcp_port_forget() may block while the kernel lists
 * its sockets. */
#ifndef REWARM_PROC_TCP_PORT_H
#define REWARM_PROC_TCP_PORT_H

#include <stdint.h>
#include <sys/socket.h>

/* A port that nobody uses on `address` (AF_INET or AF_INET6; its port is not looked at). It is not
 * held: somebody else may get it. That an address is not one of this host is no error: any free
 * port will do then. 0 or a negative errno. */
int rewarm_tcp_port_pick(const struct sockaddr *address, uint16_t *ret_port);

/* Lets `address` and port be bound again when only the kernel's memory of ended connections
 * (TIME_WAIT and the like) stands in the way, as it does for a minute after the end of a server
 * that does not set SO_REUSEADDR. Nothing is changed when the port can be bound as it is, or when a
 * socket with an owner uses it: the error is the binder's to see. Needs CAP_NET_ADMIN and a kernel
 * that can destroy sockets (INET_DIAG_DESTROY); without, nothing happens. Returns how many
 * connections were forgotten. */
unsigned rewarm_tcp_port_forget(const struct sockaddr *address);

#endif
