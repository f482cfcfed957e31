//! How much keeps a machine busy.

/// So many threads in each of so many nodes keep every core busy, however many there are.
pub(crate) fn threads_for(nodes: usize) -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    threads_on(cores, nodes)
}

/// The same for a machine with so many cores.
pub(crate) fn threads_on(cores: usize, nodes: usize) -> usize {
    cores.div_ceil(nodes)
}
