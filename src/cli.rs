//! What a program tells whoever started it wrongly: one line.
//!
//! ```no_run
//! use std::process::ExitCode;
//! use footlight::{cli, prelude::*};
//!
//! #[derive(clap::Parser)]
//! struct Options {
//!     #[command(flatten)]
//!     node: NodeArgs,
//! }
//!
//! async fn run(options: Options) -> Result<()> {
//!     Node::builder(options.node).start().await?.until_shutdown().await
//! }
//!
//! #[tokio::main]
//! async fn main() -> ExitCode {
//!     match run(cli::parse()).await {
//!         Ok(()) => ExitCode::SUCCESS,
//!         Err(error) => cli::fail(&error),
//!     }
//! }
//! ```

use std::{fmt::Display, process::ExitCode};

use clap::{Error, Parser, error::ErrorKind};

/// Reads the program's options. Wrong ones end the process with one line and clap's code, 2; a page is
/// shown only to who asks for help, or gives no command where one is needed.
pub fn parse<Options: Parser>() -> Options {
    Options::try_parse().unwrap_or_else(|error| match wrong(&error) {
        Some(line) => {
            eprintln!("{line}");
            std::process::exit(error.exit_code())
        }
        None => error.exit(),
    })
}

/// Says why the program ends, in one line whatever the text came from, and gives its exit code.
pub fn fail(error: &impl Display) -> ExitCode {
    eprintln!("error: {}", one_line(&format!("{error:#}")));
    ExitCode::FAILURE
}

/// What is wrong with the options, if that is what clap says: the first paragraph of its page, as the
/// first line alone would not name an option that is missing.
fn wrong(error: &Error) -> Option<String> {
    use ErrorKind::{DisplayHelp, DisplayHelpOnMissingArgumentOrSubcommand, DisplayVersion};
    if let DisplayHelp | DisplayHelpOnMissingArgumentOrSubcommand | DisplayVersion = error.kind() {
        return None;
    }
    let page = error.to_string();
    let paragraph = page.split("\n\n").next().unwrap_or_default();
    Some(format!("{}; see --help", one_line(paragraph)))
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum;

    use super::*;

    #[derive(Clone, Debug, ValueEnum)]
    enum Colour {
        Red,
        Blue,
    }

    #[derive(Debug, Parser)]
    #[command(name = "program", version)]
    struct Options {
        #[arg(long)]
        _node: String,
        #[arg(long)]
        _colour: Option<Colour>,
    }

    fn told(options: &[&str]) -> Option<String> {
        let words = ["program"].iter().chain(options);
        wrong(&Options::try_parse_from(words).unwrap_err())
    }

    #[test]
    fn wrong_options_are_told_in_one_line_with_all_that_matters() {
        for (options, line) in [
            (&["--nod", "x"][..], "error: unexpected argument '--nod' found; see --help"),
            (
                &[],
                "error: the following required arguments were not provided: --node <NODE>; see \
                 --help",
            ),
            (
                &["--node", "x", "--colour", "green"],
                "error: invalid value 'green' for '--colour <COLOUR>' [possible values: red, blue]; \
                 see --help",
            ),
        ] {
            assert_eq!(told(options).as_deref(), Some(line));
        }
    }

    #[test]
    fn help_and_version_are_not_wrong() {
        assert_eq!([told(&["--help"]), told(&["--version"])], [None, None]);
    }
}
