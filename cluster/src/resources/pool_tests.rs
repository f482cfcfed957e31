use proptest::prelude::*;

use super::*;

fn two_gpus() -> Resources {
    Resources::cpus(4)
        .gpu(Gpu::new(0, "small", 8 << 30))
        .gpu(Gpu::new(1, "large", 80 << 30))
        .custom("licence", 2)
}

fn indices(taken: &Taken) -> Vec<u32> {
    taken.gpus.iter().map(|gpu| gpu.index).collect()
}

#[test]
fn two_actors_share_a_gpu_only_if_both_say_so() {
    let one = Resources::default().gpu(Gpu::new(0, "a", 0));
    let mut pool = Pool::new(one.clone());
    let whole = pool.reserve(&Needs::gpus(1)).unwrap();
    let refused = pool.reserve(&Needs::gpus(1)).unwrap_err();
    assert_eq!(refused.to_string(), "does not fit: asked 1 GPU; free 0 CPUs, 0 GPUs");
    pool.reserve(&Needs::gpus(1).shared(0.1)).unwrap_err();
    pool.put_back(&whole);

    let part = pool.reserve(&Needs::gpus(1).shared(0.4)).unwrap();
    let other = pool.reserve(&Needs::gpus(1).shared(0.6)).unwrap();
    assert_eq!(part.gpus[0].share + other.gpus[0].share, 1000);
    pool.reserve(&Needs::gpus(1).shared(0.001)).unwrap_err();
    pool.put_back(&part);
    let refused = pool.reserve(&Needs::gpus(1)).unwrap_err();
    assert_eq!(refused.free.gpus[0].share, 400);
    assert!(refused.to_string().ends_with("free 0 CPUs, 1 GPU (0: a, 40 %)"), "{refused}");
    pool.put_back(&other);
    assert_eq!(pool.free(), one);
}

#[test]
fn small_asks_leave_what_is_large_to_others() {
    let mut pool = Pool::new(two_gpus());
    assert_eq!(indices(&pool.reserve(&Needs::gpus(1)).unwrap()), [0]);
    assert_eq!(indices(&pool.reserve(&Needs::gpus(1)).unwrap()), [1]);

    let mut pool = Pool::new(two_gpus());
    let large = Needs::gpus(1).with_gpu_memory(9 << 30).shared(0.5);
    assert_eq!(indices(&pool.reserve(&large).unwrap()), [1]);
    // A part goes where parts are already.
    assert_eq!(indices(&pool.reserve(&Needs::gpus(1).shared(0.5)).unwrap()), [1]);
    assert_eq!(indices(&pool.reserve(&Needs::gpus(1).shared(0.5)).unwrap()), [0]);
}

#[test]
fn nothing_is_taken_if_not_all_is_there() {
    let mut pool = Pool::new(two_gpus());
    let needs = Needs::cpus(1).with_gpus(1).with("licence", 3);
    pool.reserve(&needs).unwrap_err();
    assert_eq!(pool.free(), two_gpus());
}

#[test]
fn what_was_granted_comes_back_once_and_each_change_is_told() {
    let shared = Shared::new(two_gpus());
    let told = Arc::new(Mutex::new(Vec::new()));
    let hears = told.clone();
    shared.on_change(move |free| hears.lock().unwrap().push(free.cpus));
    let granted = shared.reserve(&Needs::cpus(3)).unwrap();
    let nothing = shared.reserve(&Needs::none()).unwrap();
    granted.give_back();
    granted.give_back();
    drop((granted, nothing));
    drop(shared.reserve(&Needs::cpus(4)).unwrap());
    assert_eq!(*told.lock().unwrap(), [1, 4, 0, 4]);
}

fn a_need() -> impl Strategy<Value = Needs> {
    (0u32..6, 0u32..4, 0u64..100, 0.0f64..1.2, 0u64..4, any::<bool>()).prop_map(
        |(cpus, gpus, memory, part, licences, shared)| {
            let needs = Needs::cpus(cpus).with_gpus(gpus).with_gpu_memory(memory << 30);
            let needs = needs.with("licence", licences);
            if shared { needs.shared(part) } else { needs }
        },
    )
}

proptest! {
    #[test]
    fn the_account_always_adds_up(
        steps in prop::collection::vec((a_need(), any::<prop::sample::Index>(), any::<bool>()), 0..60),
    ) {
        let all = two_gpus();
        let mut pool = Pool::new(all.clone());
        let mut out: Vec<Taken> = Vec::new();
        for (needs, which, back) in steps {
            if back && !out.is_empty() {
                pool.put_back(&out.swap_remove(which.index(out.len())));
            } else {
                let (free, fits) = (pool.free(), needs.fit(&pool.free()));
                match pool.reserve(&needs) {
                    Ok(taken) => {
                        prop_assert!(fits);
                        prop_assert_eq!(taken.gpus.len(), needs.gpu_count());
                        let mut distinct = indices(&taken);
                        distinct.sort();
                        distinct.dedup();
                        prop_assert_eq!(distinct.len(), taken.gpus.len(), "two of one GPU");
                        out.push(taken);
                    }
                    Err(refused) => {
                        prop_assert!(!fits);
                        prop_assert_eq!(&refused.free, &free);
                        prop_assert_eq!(pool.free(), free);
                    }
                }
            }
            let free = pool.free();
            prop_assert_eq!(free.cpus + out.iter().map(|taken| taken.cpus).sum::<u32>(), all.cpus);
            for gpu in &all.gpus {
                let left = free.gpus.iter().find(|left| left.index == gpu.index);
                let parts = out.iter().flat_map(|taken| &taken.gpus);
                let parts: Vec<u16> =
                    parts.filter(|part| part.index == gpu.index).map(|part| part.share).collect();
                let used: u16 = parts.iter().sum();
                prop_assert_eq!(left.map_or(0, |left| left.share) + used, 1000);
                prop_assert!(!parts.contains(&1000) || parts.len() == 1, "a whole one is shared");
            }
        }
        out.iter().for_each(|taken| pool.put_back(taken));
        prop_assert_eq!(pool.free(), all);
    }
}
