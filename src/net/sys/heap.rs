//! Settings of the C library's allocator, which Rust's own allocations use too.

/// Bounds the memory that glibc keeps to itself; does nothing with another C library. Call it
/// before the first thread starts.
///
/// By default glibc gives threads up to eight arenas per core (mallopt(3), `M_ARENA_MAX`): with a
/// thread per client, what a thousand departed clients freed would stay resident, spread over
/// them. And a freed buffer of 64 KiB or more would go to an arena's free list, where a small
/// neighbour that is still in use keeps it from the system. So: two arenas, buffers from 64 KiB on
/// mapped one by one and unmapped when freed, and the top of the heap given back from 128 KiB on.
/// Setting the threshold also stops glibc from raising it by itself, to as much as 32 MiB.
pub fn tune() {
    // A refused setting only costs memory, and there is nothing else to try.
    let _accepted = apply();
}

#[cfg(target_env = "gnu")]
fn apply() -> bool {
    [(libc::M_ARENA_MAX, 2), (libc::M_MMAP_THRESHOLD, 65_536), (libc::M_TRIM_THRESHOLD, 131_072)]
        .into_iter()
        .fold(true, |accepted, (parameter, value)| {
            // SAFETY: mallopt takes two integers, checks both, and takes the allocator's lock.
            let set = unsafe { libc::mallopt(parameter, value) };
            accepted && set == 1
        })
}

#[cfg(not(target_env = "gnu"))]
fn apply() -> bool {
    true
}

#[cfg(all(test, target_env = "gnu"))]
mod tests {
    use super::*;

    #[test]
    fn large_buffers_are_mapped_one_by_one() {
        assert!(apply());
        // 100,000 lies between our threshold and the default of 128 KiB. The first ones may come
        // from free space in the arena; so many cannot.
        let buffers: Vec<Vec<u8>> = (0..64).map(|_| Vec::with_capacity(100_000)).collect();
        let mapped = buffers.iter().filter(|buffer| {
            let start = buffer.as_ptr().cast_mut().cast();
            // SAFETY: `start` is a live allocation of malloc, the system allocator's.
            let usable = unsafe { libc::malloc_usable_size(start) };
            // A mapped block is whole pages less a header of two words.
            (usable + 2 * size_of::<usize>()) % 4096 == 0
        });
        assert!(mapped.count() > 32);
    }
}
