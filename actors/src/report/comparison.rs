//! Draws how the accuracy of several jobs rose over time.

use std::ops::Range;
use std::path::Path;

use plotters::element::DashedPathElement;
use plotters::prelude::*;
use plotters::style::text_anchor::HPos;

use super::ReportError;
use super::raster::{Area, Failure, at, bold, from, letters, px, stroke, write_png};

/// The picture's width and height in pixels.
pub const SIZE: (u32, u32) = (1280, 720);

const INK: RGBColor = RGBColor(38, 43, 51);
const SOFT: RGBColor = RGBColor(110, 118, 129);
const GRID: RGBColor = RGBColor(230, 233, 238);
/// Told apart also by those who don't see all colours (Okabe and Ito).
const COLORS: [RGBColor; 6] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
];

/// One job.
#[derive(Debug, Clone, Default)]
pub struct Line {
    /// What it is.
    pub name: String,
    /// Lines of one group have one colour.
    pub group: usize,
    /// Drawn with dashes.
    pub dashed: bool,
    /// Test accuracies (0 to 1), each with the seconds since the first step.
    pub points: Vec<(f64, f64)>,
}

/// Jobs that are compared.
#[derive(Debug, Clone, Default)]
pub struct Comparison {
    /// The headline.
    pub title: String,
    /// A smaller line under it.
    pub subtitle: String,
    /// The jobs.
    pub lines: Vec<Line>,
    /// An accuracy (0 to 1) to be marked.
    pub target: Option<f64>,
}

impl Comparison {
    /// Draws the lines as a PNG file of [`SIZE`]. Values that are not finite are left out.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write_png(&self, path: impl AsRef<Path>) -> Result<(), ReportError> {
        write_png(path.as_ref(), SIZE, |area| self.draw(area))
    }

    fn draw(&self, area: &Area) -> Result<(), Failure> {
        let lines: Vec<_> = self.lines.iter().map(|line| (line, line.percent())).collect();
        let all = || lines.iter().flat_map(|(_, points)| points);
        let last = all().map(|point| point.0).fold(1.0, f64::max);
        self.draw_heading(area)?;
        let mut chart = ChartBuilder::on(area)
            .margin_top(px(128))
            .margin_right(px(40))
            .margin_bottom(px(18))
            .margin_left(px(24))
            .x_label_area_size(px(54))
            .y_label_area_size(px(84))
            .build_cartesian_2d(0.0..last * 1.02, range(all().map(|point| point.1)))?;
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(stroke(GRID, 1))
            .axis_style(stroke(SOFT, 1))
            .x_labels(12)
            .y_label_formatter(&|accuracy| format!("{accuracy:.1} %"))
            .x_label_formatter(&|seconds| format!("{seconds:.0}"))
            .x_desc("seconds")
            .y_desc("test accuracy")
            .label_style(letters(17, SOFT))
            .axis_desc_style(letters(19, INK))
            .draw()?;
        if let Some(target) = self.target {
            let ends = [(0.0, target * 100.0), (last, target * 100.0)];
            chart.draw_series(DashedLineSeries::new(ends, px(3), px(5), stroke(SOFT, 1)))?;
        }
        for (line, points) in lines {
            let style = stroke(line.color(), 3);
            match line.dashed {
                true => drop(chart.draw_series(DashedLineSeries::new(
                    points.clone(),
                    px(9),
                    px(6),
                    style,
                ))?),
                false => drop(chart.draw_series(LineSeries::new(points.clone(), style))?),
            }
            let dot = |point: &(f64, f64)| Circle::new(*point, px(4), line.color().filled());
            chart.draw_series(points.iter().map(dot))?;
        }
        Ok(())
    }

    /// Title and legend: above the lines, so that they never hide one.
    fn draw_heading(&self, area: &Area) -> Result<(), Failure> {
        area.draw_text(&self.title, &from(HPos::Left, bold(28, INK)), at(40, 14))?;
        area.draw_text(&self.subtitle, &from(HPos::Left, letters(17, SOFT)), at(40, 50))?;
        let columns = self.lines.len().div_ceil(2).max(1);
        for (number, line) in self.lines.iter().enumerate() {
            let x = 40 + (number % columns) as i32 * (SIZE.0 as i32 - 80) / columns as i32;
            let y = 92 + (number / columns) as i32 * 24;
            let ends = [at(x, y), at(x + 40, y)];
            let style = stroke(line.color(), 3);
            match line.dashed {
                true => area.draw(&DashedPathElement::new(ends, px(9), px(6), style))?,
                false => area.draw(&PathElement::new(ends, style))?,
            }
            area.draw_text(&line.name, &from(HPos::Left, letters(16, INK)), at(x + 50, y - 8))?;
        }
        Ok(())
    }
}

impl Line {
    fn color(&self) -> RGBColor {
        COLORS[self.group % COLORS.len()]
    }

    fn percent(&self) -> Vec<(f64, f64)> {
        let finite = self.points.iter().filter(|(at, share)| at.is_finite() && share.is_finite());
        finite.map(|(at, share)| (*at, share * 100.0)).collect()
    }
}

/// Most of the values: what was not trained yet would stretch the axis.
fn range(accuracies: impl Iterator<Item = f64>) -> Range<f64> {
    let mut sorted: Vec<f64> = accuracies.collect();
    sorted.sort_by(f64::total_cmp);
    let low = sorted.get(sorted.len() / 12).copied().unwrap_or(0.0).clamp(0.0, 99.5);
    let high = sorted.last().copied().unwrap_or(100.0).clamp(low + 0.4, 100.5);
    let room = (high - low) * 0.05;
    low - room..high + room
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_drawn(comparison: &Comparison) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("comparison.png");
        comparison.write_png(&path).unwrap();
        let reader = png::Decoder::new(std::io::BufReader::new(std::fs::File::open(path).unwrap()))
            .read_info();
        assert_eq!(reader.unwrap().info().size(), SIZE);
    }

    #[test]
    fn jobs_are_drawn_beside_each_other_and_so_are_none_and_odd_ones() {
        let line = |group: usize, dashed| Line {
            name: format!("job {group}"),
            group,
            dashed,
            points: (1..20).map(|at| (f64::from(at), 1.0 - 0.3 / f64::from(at))).collect(),
        };
        is_drawn(&Comparison {
            title: "Three jobs".into(),
            subtitle: "on one machine".into(),
            lines: vec![line(0, false), line(0, true), line(7, false)],
            target: Some(0.98),
        });
        is_drawn(&Comparison::default());
        let points = vec![(f64::NAN, 0.5), (1.0, f64::INFINITY), (-1.0, -1.0), (1e300, 2.0)];
        is_drawn(&Comparison {
            lines: vec![Line { points, ..Line::default() }],
            target: Some(f64::NAN),
            ..Comparison::default()
        });
    }
}
