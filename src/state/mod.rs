//! Pure decisions: they take `now` and chance as arguments and hold no socket, lock or payload.

pub mod access;
pub mod address_order;
pub mod admission;
pub mod backoff;
pub mod flow_table;
pub mod link_choice;
pub mod port_pool;
pub mod redial;
pub mod session_choice;
pub mod set_ups;
pub mod token_bucket;
