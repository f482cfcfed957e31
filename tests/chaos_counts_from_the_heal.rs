//! `cargo xtask chaos` gives a fault one time to be got over, from the heal on, and counts all of it.

#[path = "endurance/recovery.rs"]
mod recovery;

use std::{
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use recovery::Recovery;
use tokio::time::sleep;

const WITHIN: Duration = Duration::from_secs(1);

/// A look whose outcome depends on how many there were before.
async fn nth(looks: &AtomicU32, whole: impl Fn(u32) -> bool) -> Result<(), String> {
    let number = looks.fetch_add(1, Ordering::Relaxed);
    if whole(number) { Ok(()) } else { Err(format!("look {number}")) }
}

#[tokio::test]
async fn a_question_that_is_never_answered_takes_no_longer_than_the_rest_of_the_time() {
    let (begun, looks) = (Instant::now(), AtomicU32::new(0));
    let look = async || {
        if looks.fetch_add(1, Ordering::Relaxed) > 0 {
            std::future::pending::<()>().await;
        }
        sleep(WITHIN * 8 / 10).await;
        Err("not yet".to_owned())
    };
    let seen = Recovery::since(begun, WITHIN).wait(&look).await.unwrap_err();
    assert!(seen.contains("not answered") && seen.contains("not yet"), "{seen}");
    assert!(begun.elapsed() < WITHIN * 17 / 10, "{:?}", begun.elapsed());
}

#[tokio::test]
async fn what_is_whole_too_late_is_not_in_time() {
    let healed = Instant::now() - WITHIN * 2;
    let look = async || Ok(());
    let seen = Recovery::since(healed, WITHIN).wait(&look).await.unwrap_err();
    assert!(seen.contains("only after"), "{seen}");
}

#[tokio::test]
async fn a_relapse_is_counted_from_the_heal() {
    let (healed, looks) = (Instant::now(), AtomicU32::new(0));
    let pause = Duration::from_millis(300);
    let look = async || nth(&looks, |number| number == 0 || number > 3).await;
    let recovery = Recovery::since(healed, Duration::from_secs(30));
    let recovered = recovery.lasting(pause, look).await.unwrap();
    assert_eq!(recovered.relapse.unwrap(), "look 1");
    assert!(recovered.took > pause, "{:?}", recovered.took);
}

#[tokio::test]
async fn a_relapse_after_the_time_is_not_got_over() {
    let looks = AtomicU32::new(0);
    let look = async || nth(&looks, |number| number != 1).await;
    let recovery = Recovery::since(Instant::now(), WITHIN);
    let seen = recovery.lasting(WITHIN * 12 / 10, look).await.unwrap_err();
    assert!(seen.contains("whole, and then not: look 1"), "{seen}");
}
