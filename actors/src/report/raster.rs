//! A picture in memory: drawn larger than it will be, with embedded letters, and written as PNG.
//!
//! The letters are DejaVu Sans, part of the program: no font of the system is asked for. Drawing at [`FINER`] times the
//! size and shrinking afterwards makes smooth lines of hard ones.

use std::error::Error;
use std::path::Path;

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{FontDesc, FontStyle, register_font};

use super::{ReportError, write_whole};

/// The picture while it is drawn, [`FINER`] times larger than it will be.
pub(super) type Area<'a> = DrawingArea<BitMapBackend<'a>, Shift>;
/// Whatever stops the drawing.
pub(super) type Failure = Box<dyn Error>;

const FINER: usize = 2;
/// Not `sans-serif`: the program around us may have a font of its own under that name.
const FONT: &str = "footlight-dejavu";

/// Draws a picture of `size` pixels, and writes it.
pub(super) fn write_png(
    path: &Path,
    size: (u32, u32),
    draw: impl FnOnce(&Area) -> Result<(), Failure>,
) -> Result<(), ReportError> {
    let wrong =
        |error: Failure| ReportError::Draw { path: path.to_owned(), reason: error.to_string() };
    let (width, height) = (size.0 * FINER as u32, size.1 * FINER as u32);
    let mut pixels = vec![255; width as usize * height as usize * 3];
    {
        let area = BitMapBackend::with_buffer(&mut pixels, (width, height)).into_drawing_area();
        fonts().and_then(|()| draw(&area)).and_then(|()| Ok(area.present()?)).map_err(wrong)?;
    }
    let png =
        encode(&shrink(&pixels, size.0 as usize), size).map_err(|error| wrong(error.into()))?;
    write_whole(path, &png)
}

fn fonts() -> Result<(), Failure> {
    for (style, bytes) in
        [(FontStyle::Normal, dejavu::sans::regular()), (FontStyle::Bold, dejavu::sans::bold())]
    {
        register_font(FONT, style, bytes).map_err(|_| "the embedded font cannot be read")?;
    }
    Ok(())
}

/// A length in pixels of the finished picture.
pub(super) fn px(pixels: u32) -> u32 {
    pixels * FINER as u32
}

/// A place in pixels of the finished picture.
pub(super) fn at(x: i32, y: i32) -> (i32, i32) {
    (x * FINER as i32, y * FINER as i32)
}

/// A line, its width in pixels of the finished picture.
pub(super) fn stroke(color: impl Color, width: u32) -> ShapeStyle {
    color.stroke_width(px(width))
}

/// Letters, their size in pixels of the finished picture, centred on their place.
pub(super) fn letters(size: u32, color: RGBColor) -> TextStyle<'static> {
    FontDesc::new(FontFamily::Name(FONT), px(size).into(), FontStyle::Normal).color(&color)
}

/// Fat letters.
pub(super) fn bold(size: u32, color: RGBColor) -> TextStyle<'static> {
    FontDesc::new(FontFamily::Name(FONT), px(size).into(), FontStyle::Bold).color(&color)
}

/// Letters that begin (left) or end (right) at their place, below it.
pub(super) fn from(side: HPos, style: TextStyle<'static>) -> TextStyle<'static> {
    style.pos(Pos::new(side, VPos::Top))
}

/// Each pixel becomes the mean of the [`FINER`]² pixels that it was drawn with.
fn shrink(pixels: &[u8], width: usize) -> Vec<u8> {
    let mut small = Vec::with_capacity(pixels.len() / FINER / FINER);
    let mut sums = vec![0u16; width * 3];
    for rows in pixels.chunks_exact(width * 3 * FINER * FINER) {
        sums.fill(0);
        for row in rows.chunks_exact(width * 3 * FINER) {
            for (sum, block) in sums.chunks_exact_mut(3).zip(row.chunks_exact(3 * FINER)) {
                for pixel in block.chunks_exact(3) {
                    sum.iter_mut().zip(pixel).for_each(|(sum, value)| *sum += u16::from(*value));
                }
            }
        }
        small.extend(sums.iter().map(|sum| (sum / (FINER * FINER) as u16) as u8));
    }
    small
}

fn encode(pixels: &[u8], (width, height): (u32, u32)) -> Result<Vec<u8>, png::EncodingError> {
    let mut file = Vec::new();
    let mut encoder = png::Encoder::new(&mut file, width, height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.write_header()?.write_image_data(pixels)?;
    Ok(file)
}
