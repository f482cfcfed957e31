//! A message of the same name and another shape is refused before it is sent.

use footlight::prelude::*;

use crate::support::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_of_another_shape_is_not_sent_and_the_error_says_what_to_do() {
    let cluster = Cluster::new();
    let other = Options { other_shape: true, ..Options::default() };
    let seed = cluster.process("other-build", other).await;
    let node = cluster.here(Options::join(seed.addr)).await;
    let probe = soon(node.spawn::<Probe>(()).on(Placement::seed())).await.unwrap();
    // What has the same shape on both sides works.
    assert_eq!(soon(probe.call(Where {})).await.unwrap().0, seed.id);
    let errors = [
        soon(probe.call(Shaped { field: 1 })).await.unwrap_err(),
        soon(probe.cast(Shaped { field: 1 })).await.unwrap_err(),
        probe.try_cast(Shaped { field: 1 }).unwrap_err(),
    ];
    for error in errors {
        assert_eq!(error.fate(), Fate::NotSent);
        assert!(matches!(error.cause(), Cause::Refused(_)), "{error}");
        let text = error.to_string();
        assert!(text.contains("`test.Shaped` has another shape"), "{text}");
        assert!(text.contains("run the same build on all nodes"), "{text}");
    }
    // What the other side does not register at all.
    let error = soon(probe.call(Notes {})).await.unwrap_err();
    assert_eq!(error.fate(), Fate::NotSent);
    assert!(error.to_string().contains("takes `test.Notes`"), "{error}");
}
