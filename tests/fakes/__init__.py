"""Stand-ins for the vendors' servers: real sockets on the loopback interface, the wire formats of the vendors."""
