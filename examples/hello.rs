//! Two nodes and one typed call.
//!
//! ```text
//! cargo run --no-default-features --example hello                            # one terminal: the seed
//! cargo run --no-default-features --example hello -- --seed 127.0.0.1:7400   # another: says hello
//! ```

use clap::Parser;
use footlight::prelude::*;
use std::time::Duration;

#[derive(Serialize, Deserialize)]
struct Greet {
    name: String,
}
impl Message for Greet {
    type Reply = String;
    const NAME: &'static str = "hello.greet";
}

struct Greeter {
    greeted: u64,
}
impl Actor for Greeter {
    type Args = ();
    const NAME: &'static str = "hello.greeter";

    async fn start(_: (), _: &Context<Self>) -> Result<Self> {
        Ok(Greeter { greeted: 0 })
    }
}

impl Handler<Greet> for Greeter {
    async fn handle(&mut self, greet: Greet, _: &Context<Self>) -> String {
        self.greeted += 1;
        format!("hello {}, number {}", greet.name, self.greeted)
    }
}

#[derive(Parser)]
struct Args {
    #[command(flatten)]
    node: NodeArgs,
}
#[tokio::main]
async fn main() -> Result<()> {
    let node = Node::builder(Args::parse().node)
        .register::<Greeter>(|greeter| greeter.handles::<Greet>())
        .join_timeout(Duration::from_secs(15))
        .start()
        .await?;
    if node.is_seed() {
        println!("seed at {}; stop it with Ctrl-C", node.addr());
        return node.until_shutdown().await;
    }
    let greeter = node.spawn::<Greeter>(()).on(Placement::seed()).await?;
    println!("{}", greeter.call(Greet { name: "Ada".into() }).await?);
    node.leave().await
}
