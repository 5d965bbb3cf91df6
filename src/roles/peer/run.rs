//! The loop of a member: sockets, servers, members, terminal and forwarding, in one thread.
