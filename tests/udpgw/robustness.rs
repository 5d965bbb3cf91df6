//! Clients that misbehave, systems that run out, and the end under load.
