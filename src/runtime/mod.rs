//! Threads and time.

