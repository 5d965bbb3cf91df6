//! Pure decisions: they take `now` and chance as arguments and hold no socket, lock or payload.

pub mod flow_table;
pub mod access;
pub mod token_bucket;
