//! Draws a job's loss and accuracy.

use std::ops::Range;
use std::path::Path;

use plotters::element::DashedPathElement;
use plotters::prelude::*;
use plotters::style::text_anchor::HPos;

use super::ReportError;
use super::raster::{Area, Failure, at, bold, from, letters, px, stroke, write_png};

/// The picture's width and height in pixels.
pub const SIZE: (u32, u32) = (1280, 720);

/// Most points of a line: more could not be told apart.
const POINTS: usize = 1000;

const INK: RGBColor = RGBColor(38, 43, 51);
const SOFT: RGBColor = RGBColor(110, 118, 129);
const GRID: RGBColor = RGBColor(230, 233, 238);
const LOSS: RGBColor = RGBColor(37, 99, 195);
const LOSS_PALE: RGBColor = RGBColor(160, 190, 235);
const ACCURACY: RGBColor = RGBColor(224, 122, 31);
const KILL: RGBColor = RGBColor(196, 43, 58);

/// What a job looked like over its steps.
#[derive(Debug, Clone, Default)]
pub struct Curves {
    /// The headline.
    pub title: String,
    /// A smaller line under it.
    pub subtitle: String,
    /// Steps of one epoch: the horizontal axis counts epochs.
    pub steps_per_epoch: u32,
    /// The mean training loss of each step, with the number of steps that were done by then.
    pub losses: Vec<(u64, f32)>,
    /// Test accuracies (0 to 1), each with the number of steps that were done by then.
    pub accuracies: Vec<(u64, f64)>,
    /// The accuracy that was asked for (0 to 1). Without it and without accuracies there is no axis for them.
    pub target: Option<f64>,
    /// What happened on the way, such as a kill: the step and a few words.
    pub marks: Vec<(u64, String)>,
}

type Points = Vec<(f64, f64)>;

impl Curves {
    /// Draws the curves as a PNG file of [`SIZE`]. Values that are not finite are left out.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write_png(&self, path: impl AsRef<Path>) -> Result<(), ReportError> {
        write_png(path.as_ref(), SIZE, |area| self.draw(area))
    }

    fn epoch(&self, step: u64) -> f64 {
        step as f64 / f64::from(self.steps_per_epoch.max(1))
    }

    fn draw(&self, area: &Area) -> Result<(), Failure> {
        let finite = |loss: &f32| loss.is_finite().then(|| f64::from(*loss).max(1e-6));
        let losses = self.losses.iter();
        let losses: Points =
            losses.filter_map(|(step, loss)| Some((self.epoch(*step), finite(loss)?))).collect();
        let accuracies: Points = self
            .accuracies
            .iter()
            .filter(|(_, accuracy)| accuracy.is_finite())
            .map(|(step, accuracy)| (self.epoch(*step), accuracy * 100.0))
            .collect();
        let smooth = smoothed(&losses);
        let last = losses.iter().chain(&accuracies).map(|point| point.0).fold(1.0, f64::max);
        let (low, high) = loss_range(&losses, &smooth);
        // Only powers of it have numbers beside them: there must be some within.
        let base = if high < 100.0 * low { 2.0 } else { 10.0 };
        let has_accuracy = !accuracies.is_empty() || self.target.is_some();
        self.draw_heading(area, has_accuracy)?;

        let mut chart = ChartBuilder::on(area)
            .margin_top(px(124))
            .margin_right(px(28))
            .margin_bottom(px(18))
            .margin_left(px(24))
            .x_label_area_size(px(54))
            .y_label_area_size(px(84))
            .right_y_label_area_size(px(if has_accuracy { 84 } else { 0 }))
            .build_cartesian_2d(0.0..last * 1.01, (low..high).log_scale().base(base))?
            .set_secondary_coord(0.0..last * 1.01, accuracy_range(&accuracies, self.target));
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(stroke(GRID, 1))
            .axis_style(stroke(SOFT, 1))
            .x_labels(12)
            .x_label_formatter(&|epoch| plain(*epoch))
            .y_label_formatter(&|loss| plain(*loss))
            .x_desc("epoch")
            .y_desc("training loss (logarithmic)")
            .label_style(letters(17, SOFT))
            .axis_desc_style(letters(19, INK))
            .draw()?;
        if has_accuracy {
            chart
                .configure_secondary_axes()
                .axis_style(stroke(SOFT, 1))
                .y_label_formatter(&|accuracy| format!("{} %", plain(*accuracy)))
                .y_desc("test accuracy")
                .label_style(letters(17, SOFT))
                .axis_desc_style(letters(19, INK))
                .draw()?;
        }

        let inside = |(x, loss): (f64, f64)| (x, loss.clamp(low, high));
        // A hairline: thicker ones have long spikes where they turn sharply.
        chart.draw_series(LineSeries::new(extremes(&losses).into_iter().map(inside), LOSS_PALE))?;
        if let Some(target) = self.target {
            let ends = [(0.0, target * 100.0), (last, target * 100.0)];
            chart.draw_secondary_series(DashedLineSeries::new(
                ends,
                px(3),
                px(5),
                stroke(ACCURACY, 1),
            ))?;
        }
        for (step, words) in &self.marks {
            let x = self.epoch(*step).min(last);
            chart.draw_series(DashedLineSeries::new(
                [(x, low), (x, high)],
                px(8),
                px(6),
                stroke(KILL, 2),
            ))?;
            // The words stand on the side where there is room.
            let (side, gap) = if x > last / 2.0 { (HPos::Right, -8) } else { (HPos::Left, 8) };
            let words = Text::new(words.clone(), at(gap, 6), from(side, letters(17, KILL)));
            chart.draw_series([EmptyElement::at((x, high)) + words])?;
        }
        chart.draw_series(LineSeries::new(smooth, stroke(LOSS, 3)))?;
        chart.draw_secondary_series(LineSeries::new(
            accuracies.iter().copied(),
            stroke(ACCURACY, 3),
        ))?;
        let dot = |point: &(f64, f64)| Circle::new(*point, px(5), ACCURACY.filled());
        chart.draw_secondary_series(accuracies.iter().map(dot))?;
        if let Some(point) = accuracies.last() {
            let words = Text::new(
                format!("{:.2} %", point.1),
                at(4, -28),
                from(HPos::Right, bold(18, ACCURACY)),
            );
            chart.draw_secondary_series([EmptyElement::at(*point) + words])?;
        }
        Ok(())
    }

    /// Title and legend: above the curves, so that they never hide one.
    fn draw_heading(&self, area: &Area, has_accuracy: bool) -> Result<(), Failure> {
        area.draw_text(&self.title, &from(HPos::Left, bold(28, INK)), at(40, 18))?;
        area.draw_text(&self.subtitle, &from(HPos::Left, letters(17, SOFT)), at(40, 56))?;
        let mut x = 40;
        let mut entry = |area: &Area, words: &str, color, dashes: Option<(u32, u32)>, width| {
            let line = [at(x, 98), at(x + 34, 98)];
            match dashes {
                Some((on, off)) => {
                    area.draw(&DashedPathElement::new(
                        line,
                        px(on),
                        px(off),
                        stroke(color, width),
                    ))?;
                }
                None => area.draw(&PathElement::new(line, stroke(color, width)))?,
            }
            area.draw_text(words, &from(HPos::Left, letters(16, INK)), at(x + 42, 90))?;
            x += 42 + 8 * words.chars().count() as i32 + 26;
            Ok::<(), Failure>(())
        };
        entry(area, "loss of each step", LOSS_PALE, None, 2)?;
        entry(area, "loss, smoothed", LOSS, None, 3)?;
        if has_accuracy {
            entry(area, "test accuracy", ACCURACY, None, 3)?;
        }
        if let Some(target) = self.target {
            entry(
                area,
                &format!("wanted: {} %", plain(target * 100.0)),
                ACCURACY,
                Some((3, 5)),
                1,
            )?;
        }
        Ok(())
    }
}

/// A number without needless digits.
fn plain(number: f64) -> String {
    let text = format!("{number:.4}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// A running mean over about a thirtieth of the job, begun with the first values' own mean.
fn smoothed(points: &[(f64, f64)]) -> Points {
    let new = (30.0 / points.len().max(1) as f64).clamp(0.005, 0.5);
    let (mut mean, mut weight) = (0.0, 0.0);
    let smooth = points.iter().map(|(x, loss)| {
        mean = mean * (1.0 - new) + loss * new;
        weight = weight * (1.0 - new) + new;
        (*x, mean / weight)
    });
    let every = points.len() / (POINTS / 4) + 1;
    smooth
        .enumerate()
        .filter(|(i, _)| i % every == 0 || i + 1 == points.len())
        .map(|(_, point)| point)
        .collect()
}

/// The smallest and the largest of each group of neighbours, where there are too many to draw.
fn extremes(points: &[(f64, f64)]) -> Points {
    let group = (2 * points.len()).div_ceil(POINTS).max(1);
    if group <= 2 {
        return points.to_vec();
    }
    let by_loss = |a: &&(f64, f64), b: &&(f64, f64)| a.1.total_cmp(&b.1);
    let ends = |group: &[(f64, f64)]| {
        [group.iter().min_by(by_loss).copied(), group.iter().max_by(by_loss).copied()]
    };
    points.chunks(group).flat_map(ends).flatten().collect()
}

/// All of the smooth line and most of the single values: one lucky batch would stretch a logarithmic axis.
fn loss_range(losses: &[(f64, f64)], smooth: &[(f64, f64)]) -> (f64, f64) {
    let mut sorted: Vec<f64> = losses.iter().map(|point| point.1).collect();
    sorted.sort_by(f64::total_cmp);
    let low = sorted.get(sorted.len() / 20).copied().unwrap_or(0.01);
    let low = smooth.iter().map(|point| point.1).fold(low, f64::min);
    let high = sorted.last().copied().unwrap_or(1.0);
    (low * 0.6, (high * 2.0).max(low * 2.0))
}

/// From a round number below the worst value to 100.
fn accuracy_range(accuracies: &[(f64, f64)], target: Option<f64>) -> Range<f64> {
    let target = target.map(|target| target * 100.0);
    let worst = accuracies
        .iter()
        .map(|point| point.1)
        .chain(target)
        .fold(100.0, f64::min)
        .clamp(0.0, 100.0);
    let step = if worst > 95.0 { 1.0 } else { 10.0 };
    let low = ((worst - step * 0.5) / step).floor().max(0.0) * step;
    low..100.0 + (100.0 - low) * 0.02
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The picture's size, and its bytes row by row.
    fn drawn(curves: &Curves) -> ((u32, u32), Vec<u8>) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("loss.png");
        curves.write_png(&path).unwrap();
        let file = std::io::BufReader::new(std::fs::File::open(path).unwrap());
        let mut reader = png::Decoder::new(file).read_info().unwrap();
        let mut bytes = vec![0; reader.output_buffer_size().unwrap()];
        reader.next_frame(&mut bytes).unwrap();
        (reader.info().size(), bytes)
    }

    fn size_of_png(curves: &Curves) -> (u32, u32) {
        drawn(curves).0
    }

    /// Whether numbers stand beside the axis of losses.
    fn has_losses_numbers(curves: &Curves) -> bool {
        let (size, bytes) = drawn(curves);
        let row = bytes.len() / size.1 as usize;
        let pixel = row / size.0 as usize;
        let beside = bytes.chunks(row).take(640).skip(130);
        let mut beside = beside.flat_map(|row| row[60 * pixel..104 * pixel].chunks(pixel));
        beside.any(|pixel| pixel != &bytes[..pixel.len()])
    }

    fn has_color(curves: &Curves, RGBColor(red, green, blue): RGBColor) -> bool {
        let (size, bytes) = drawn(curves);
        let pixel = bytes.len() / (size.0 * size.1) as usize;
        bytes.chunks(pixel).any(|pixel| pixel.starts_with(&[red, green, blue]))
    }

    #[test]
    fn a_job_is_drawn_with_its_accuracy_and_its_kill() {
        let curves = Curves {
            title: "LeNet-5 on MNIST".into(),
            subtitle: "two workers".into(),
            steps_per_epoch: 1000,
            losses: (1..=4000).map(|step| (step, 2.0 / (1.0 + step as f32 / 100.0))).collect(),
            accuracies: vec![(1000, 0.97), (2000, 0.981), (3000, 0.985), (4000, 0.99)],
            target: Some(0.99),
            marks: vec![(2300, "a worker was killed".into())],
        };
        assert_eq!(size_of_png(&curves), SIZE);
    }

    #[test]
    fn whatever_the_losses_numbers_stand_beside_their_axis() {
        for (low, high) in [(1.8, 4.2f32), (0.001, 2.3), (0.5, 0.51), (20.0, 90.0)] {
            let loss = |step| high - (high - low) * step as f32 / 100.0;
            let losses = (1..=100).map(|step| (step, loss(step))).collect();
            let curves = Curves { losses, steps_per_epoch: 100, ..Curves::default() };
            assert!(has_losses_numbers(&curves), "from {low} to {high}");
        }
    }

    #[test]
    fn nothing_is_said_of_an_accuracy_that_a_job_does_not_have() {
        let mut curves = Curves { losses: vec![(1, 2.0), (2, 1.0)], ..Curves::default() };
        assert!(!has_color(&curves, ACCURACY));
        curves.accuracies = vec![(2, 0.97)];
        assert!(has_color(&curves, ACCURACY));
    }

    #[test]
    fn a_job_that_went_nowhere_is_drawn_all_the_same() {
        assert_eq!(size_of_png(&Curves::default()), SIZE);
        let odd = Curves {
            losses: vec![(1, f32::NAN), (2, 0.0), (u64::MAX, f32::INFINITY), (0, 1e30)],
            accuracies: vec![(0, f64::NAN), (0, 0.0), (u64::MAX, 1.0)],
            marks: vec![(u64::MAX, String::new())],
            ..Curves::default()
        };
        assert_eq!(size_of_png(&odd), SIZE);
    }

    #[test]
    fn a_picture_that_cannot_be_written_is_named() {
        let text = Curves::default().write_png("/dev/null/loss.png").unwrap_err().to_string();
        assert!(text.starts_with("cannot write /dev/null/loss.png: "), "{text}");
    }
}
