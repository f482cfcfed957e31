//! Wrong options: one line, as everything else that goes wrong.

use clap::error::ErrorKind;
use clap::{Error, Parser};

/// Reads the options. Wrong ones end the process with one line and clap's code, 2; a page is shown only to who asks for
/// help, or gives no command.
///
/// The same as `footlight::cli::parse`: this program must build before libtorch is there, and so without `footlight`.
pub(crate) fn parse<Options: Parser>() -> Options {
    Options::try_parse().unwrap_or_else(|error| match wrong(&error) {
        Some(line) => {
            eprintln!("{line}");
            std::process::exit(error.exit_code())
        }
        None => error.exit(),
    })
}

/// The first paragraph of clap's page as one line, if it is about something wrong.
fn wrong(error: &Error) -> Option<String> {
    use ErrorKind::{DisplayHelp, DisplayHelpOnMissingArgumentOrSubcommand, DisplayVersion};
    if let DisplayHelp | DisplayHelpOnMissingArgumentOrSubcommand | DisplayVersion = error.kind() {
        return None;
    }
    let page = error.to_string();
    let words = page.split("\n\n").next().unwrap_or_default().split_whitespace();
    Some(format!("{}; see --help", words.collect::<Vec<_>>().join(" ")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Cli;
    use clap::CommandFactory;

    fn told(line: &str) -> Option<String> {
        let read = Cli::try_parse_from(["cargo xtask"].into_iter().chain(line.split_whitespace()));
        wrong(&read.err()?)
    }

    #[test]
    fn no_option_stands_in_another_s_way() {
        Cli::command().debug_assert();
    }

    #[test]
    fn wrong_options_are_told_in_one_line() {
        let unknown = "error: unexpected argument '--epoch' found; see --help";
        assert_eq!(told("demo --epoch 3").as_deref(), Some(unknown));
        let unlike = told("setup --cuda --cpu").unwrap_or_default();
        assert!(unlike.contains("--cuda") && unlike.contains("--cpu"), "{unlike}");
        assert_eq!(unlike.lines().count(), 1);
        assert!(told("setup --dataset cifar").is_some_and(|line| line.contains("fashion-mnist")));
    }

    #[test]
    fn help_is_not_wrong() {
        assert_eq!([told("--help"), told("demo --help"), told("")], [None, None, None]);
    }
}
