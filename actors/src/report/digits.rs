//! Shows images in the terminal, side by side, each with what a model makes of it.

use std::fmt::Write;
use std::ops::Range;

/// The widest picture, in columns.
pub const WIDTH: usize = 100;

/// Between two images, in columns.
const GAP: usize = 2;

/// One image and its prediction.
#[derive(Debug, Clone, Copy)]
pub struct Shown<'a> {
    /// Its pixels, row after row: 0 is background, 255 is ink.
    pub pixels: &'a [u8],
    /// The class it really has, if that is known.
    pub label: Option<usize>,
    /// The class that the model gives it.
    pub prediction: usize,
    /// How sure the model is: 0 to 1.
    pub probability: f32,
}

/// What the terminal can show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// Shades of grey (256 colours) in half blocks: two pixels a character.
    Grey,
    /// Half blocks without colours: a pixel is there or not.
    Blocks,
    /// Plain ASCII: characters of growing weight, each for two pixels.
    Ascii,
}

impl Style {
    /// Chooses by the environment: `LC_ALL`, `LC_CTYPE` or `LANG` (the first that is set) says whether the terminal
    /// knows UTF-8, and colours are for terminals only, and not if `NO_COLOR` is set or `TERM` is `dumb`.
    ///
    /// `variable` reads an environment variable, `terminal` says whether the output goes to a terminal.
    ///
    /// ```
    /// # use std::io::IsTerminal;
    /// # use footlight_actors::report::digits::Style;
    /// let style = Style::detect(|name| std::env::var(name).ok(), std::io::stdout().is_terminal());
    /// ```
    pub fn detect(variable: impl Fn(&str) -> Option<String>, terminal: bool) -> Self {
        let set = |name: &&str| variable(name).filter(|value| !value.is_empty());
        let locale = ["LC_ALL", "LC_CTYPE", "LANG"]
            .iter()
            .find_map(set)
            .unwrap_or_default()
            .to_ascii_lowercase();
        if !locale.contains("utf-8") && !locale.contains("utf8") {
            Self::Ascii
        } else if terminal
            && set(&"NO_COLOR").is_none()
            && set(&"TERM").is_some_and(|term| term != "dumb")
        {
            Self::Grey
        } else {
            Self::Blocks
        }
    }
}

/// Draws images that are `cols` pixels wide, with a caption under each: prediction, whether it is right, and its
/// probability. `names` are the names of the classes; a class without one is shown by its number.
///
/// At most `width` columns are used: the images stand side by side as far as there is room, and then in further rows.
/// Margins that no image has ink in are left out.
pub fn draw(images: &[Shown], cols: usize, names: &[&str], style: Style, width: usize) -> String {
    let cols = cols.max(1);
    let (rows, columns) = ink(images, cols);
    let cell = columns.len().max(CAPTION);
    let beside = ((width + GAP) / (cell + GAP)).max(1);
    let mut text = String::new();
    for group in images.chunks(beside) {
        for row in rows.clone().step_by(2) {
            let line: Vec<_> = group
                .iter()
                .map(|image| draw_row(image, cols, row, &columns, cell, style))
                .collect();
            push_line(&mut text, &line);
        }
        let line: Vec<_> =
            group.iter().map(|image| centred(&caption(image, names, style), cell)).collect();
        push_line(&mut text, &line);
        text.push('\n');
    }
    text
}

/// Room for the caption of a digit.
const CAPTION: usize = 21;

fn push_line(text: &mut String, cells: &[String]) {
    text.push_str(cells.join(&" ".repeat(GAP)).trim_end());
    text.push('\n');
}

fn pixel(image: &Shown, cols: usize, row: usize, column: usize) -> u8 {
    image.pixels.get(row * cols + column).copied().unwrap_or(0)
}

/// The rows and columns that hold all images' ink.
fn ink(images: &[Shown], cols: usize) -> (Range<usize>, Range<usize>) {
    let inked = |image: &Shown| {
        let places = image.pixels.iter().enumerate();
        places
            .filter(|(_, value)| **value > 0)
            .map(|(place, _)| (place / cols, place % cols))
            .collect::<Vec<_>>()
    };
    let places = images.iter().flat_map(inked);
    let grown = places.fold(None, |so_far, (row, column)| {
        let (rows, columns) = so_far.unwrap_or((row..row, column..column));
        Some((with(rows, row), with(columns, column)))
    });
    grown.unwrap_or((0..1, 0..1))
}

/// The range, grown so that it holds `place`.
fn with(range: Range<usize>, place: usize) -> Range<usize> {
    range.start.min(place)..range.end.max(place + 1)
}

fn draw_row(
    image: &Shown,
    cols: usize,
    row: usize,
    columns: &Range<usize>,
    cell: usize,
    style: Style,
) -> String {
    let spare = cell - columns.len();
    let mut text = " ".repeat(spare / 2);
    let mut colors = None;
    for column in columns.clone() {
        let (upper, lower) = (pixel(image, cols, row, column), pixel(image, cols, row + 1, column));
        match style {
            Style::Grey => {
                let pair = (grey(upper), grey(lower));
                if colors.replace(pair) != Some(pair) {
                    let _ = write!(text, "\x1b[38;5;{};48;5;{}m", pair.0, pair.1); // a String takes everything
                }
                text.push('▀');
            }
            Style::Blocks => text.push(match (upper >= 128, lower >= 128) {
                (true, true) => '█',
                (true, false) => '▀',
                (false, true) => '▄',
                (false, false) => ' ',
            }),
            Style::Ascii => {
                let shades = b" .:-=+*#%@";
                let mean = (usize::from(upper) + usize::from(lower)) / 2;
                text.push(shades.get(mean * shades.len() / 256).copied().unwrap_or(b'@').into());
            }
        }
    }
    if colors.is_some() {
        text.push_str("\x1b[0m");
    }
    text.push_str(&" ".repeat(spare - spare / 2));
    text
}

/// The 24 greys of the 256 colours.
fn grey(value: u8) -> u8 {
    232 + (u16::from(value) * 23 / 255) as u8
}

fn caption(image: &Shown, names: &[&str], style: Style) -> String {
    let name = |class: usize| {
        names.get(class).map_or_else(|| class.to_string(), |name| (*name).to_owned())
    };
    let sure = format!("{:.1} %", image.probability * 100.0);
    let prediction = name(image.prediction);
    let (right, wrong) = if style == Style::Ascii { ("ok", "wrong") } else { ("✓", "✗") };
    match image.label {
        None => format!("{prediction} {sure}"),
        Some(label) if label == image.prediction => format!("{prediction} {right} {sure}"),
        Some(label) => format!("{prediction} {wrong} {sure} (is {})", name(label)),
    }
}

/// In the middle of `width` columns; what is longer is cut.
fn centred(text: &str, width: usize) -> String {
    let text: String = text.chars().take(width).collect();
    format!("{text:^width$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A cross in an 8×8 image.
    fn cross() -> Vec<u8> {
        (0..64).map(|i| if i / 8 == 4 || i % 8 == 3 { 255 } else { 0 }).collect()
    }

    fn shown(pixels: &[u8], label: Option<usize>) -> Shown<'_> {
        Shown { pixels, label, prediction: 7, probability: 0.998 }
    }

    #[test]
    fn an_image_is_drawn_with_its_prediction_underneath() {
        let pixels = cross();
        let text = draw(&[shown(&pixels, Some(7))], 8, &[], Style::Blocks, 100);
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        assert_eq!(lines, ["█", "█", "▀▀▀█▀▀▀▀", "█", "7 ✓ 99.8 %", ""]);
    }

    #[test]
    fn a_wrong_prediction_says_what_it_should_have_been() {
        let pixels = cross();
        let names = ["a", "b", "c", "d", "e", "f", "g", "Sneaker", "i", "Ankle boot"];
        let caption = |style| {
            let text = draw(&[shown(&pixels, Some(9))], 8, &names, style, 100);
            text.lines().rev().nth(1).unwrap().trim().to_owned()
        };
        assert_eq!(caption(Style::Blocks), "Sneaker ✗ 99.8 % (is");
        let pixels = [255; 28 * 28];
        let text = draw(&[shown(&pixels, Some(9))], 28, &names, Style::Ascii, 100);
        assert!(text.contains("Sneaker wrong 99.8 % (is Ank"), "{text}");
        assert!(draw(&[shown(&pixels, None)], 28, &[], Style::Ascii, 100).contains("  7 99.8 %"));
    }

    #[test]
    fn ascii_has_no_other_characters_and_no_colours() {
        let pixels: Vec<u8> = (0..=255).collect();
        let text = draw(&[shown(&pixels, Some(3))], 16, &[], Style::Ascii, 100);
        assert!(text.chars().all(|c| c == '\n' || c == ' ' || c.is_ascii_graphic()), "{text}");
    }

    #[test]
    fn images_stand_side_by_side_within_the_width() {
        let pixels = vec![200; 28 * 28];
        let images = vec![shown(&pixels, Some(7)); 7];
        let text = draw(&images, 28, &[], Style::Blocks, WIDTH);
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH), "{text}");
        let captions: Vec<usize> =
            text.lines().map(|line| line.matches('✓').count()).filter(|n| *n > 0).collect();
        assert_eq!(captions, [3, 3, 1]);
        assert_eq!(text.lines().count(), 3 * 16);
    }

    #[test]
    fn grey_images_end_their_colours_in_each_row() {
        let pixels = cross();
        let text = draw(&[shown(&pixels, None); 2], 8, &[], Style::Grey, 100);
        let drawn: Vec<&str> = text.lines().filter(|line| line.contains('▀')).collect();
        assert_eq!(drawn.len(), 4);
        assert!(drawn.iter().all(|line| line.matches("\x1b[0m").count() == 2));
    }

    #[test]
    fn what_the_terminal_can_show_is_seen_from_its_environment() {
        let with = |set: &[(&str, &str)], terminal| {
            let set: Vec<_> =
                set.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
            Style::detect(
                |name| set.iter().find(|(set, _)| set == name).map(|(_, value)| value.clone()),
                terminal,
            )
        };
        let modern = [("LANG", "en_US.UTF-8"), ("TERM", "xterm")];
        assert_eq!(with(&modern, true), Style::Grey);
        assert_eq!(with(&modern, false), Style::Blocks);
        assert_eq!(
            with(&[("LANG", "C.utf8"), ("TERM", "xterm"), ("NO_COLOR", "1")], true),
            Style::Blocks
        );
        assert_eq!(
            with(&[("LANG", "en_US.UTF-8"), ("LC_ALL", "C"), ("TERM", "xterm")], true),
            Style::Ascii
        );
        assert_eq!(with(&[("LANG", "C.UTF-8"), ("TERM", "dumb")], true), Style::Blocks);
        assert_eq!(with(&[], true), Style::Ascii);
    }

    #[test]
    fn odd_images_are_drawn_without_a_panic() {
        for style in [Style::Grey, Style::Blocks, Style::Ascii] {
            for (pixels, cols) in
                [(&[][..], 28), (&[255; 5][..], 28), (&[255; 9][..], 2), (&[9; 3][..], 0)]
            {
                draw(&[shown(pixels, Some(1))], cols, &[], style, 0);
            }
            assert_eq!(draw(&[], 28, &[], style, 100), "");
        }
    }
}
