//! Many packets in one.

/// x
#[derive(Debug)]
pub struct VirtioHeader;
