//! Pure decisions: they take `now` and chance as arguments and hold no socket, lock or payload.

pub mod access;
pub mod address_order;
pub mod admission;
pub mod backoff;
pub mod contact;
pub mod flow_table;
pub mod link_choice;
pub mod mesh;
pub mod nat_detection;
pub mod pairing;
pub mod port_pool;
pub mod punch;
pub mod recent;
pub mod redial;
pub mod registration;
pub mod registry;
pub mod seeded;
pub mod session_choice;
pub mod set_ups;
pub mod slots;
pub mod source_rate;
pub mod token_bucket;
pub mod vpn;

#[cfg(test)]
pub(crate) mod simulated_nat;
