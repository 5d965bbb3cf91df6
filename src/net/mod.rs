//! System calls: the only layer that makes them.

