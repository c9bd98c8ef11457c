//! The plot for the README.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::coord::Shift;
use plotters::prelude::*;

use crate::peers::Kind;
use crate::report::Report;

/// The panels are laid out in two columns.
const COLUMNS: usize = 2;
const WIDTH: u32 = 1000;
const ROW: i32 = 26;
const PANEL: i32 = ROW * Kind::ALL.len() as i32 + 56;
/// Where the bars start, and the length of the longest.
const LEFT: i32 = 140;
const LONGEST: f64 = 280.0;

const OURS: RGBColor = RGBColor(0x1f, 0x6f, 0xb4);
const OTHERS: RGBColor = RGBColor(0xa8, 0xb4, 0xc0);
const TEXT: RGBColor = RGBColor(0x33, 0x33, 0x33);

/// The panels: figure, title, factor from SI units, digits.
const PANELS: [(&str, &str, f64, usize); 4] = [
    ("tcp1-up-cpu", "Guest to host: CPU ms a GB (less is better)", 1e12, 0),
    ("tcp1-down-cpu", "Host to guest: CPU ms a GB (less is better)", 1e12, 0),
    ("tcp1-up-rate", "Guest to host: Gbit/s (more is better)", 8e-9, 1),
    ("tcp1-down-rate", "Host to guest: Gbit/s (more is better)", 8e-9, 1),
];

/// Draws the medians, with lines from minimum to maximum.
///
/// # Errors
/// If the file cannot be written.
pub fn draw(report: &Report, file: &Path) -> Result<()> {
    let rows = PANELS.len() / COLUMNS;
    let height = (PANEL * rows as i32) as u32;
    let root = SVGBackend::new(file, (WIDTH, height)).into_drawing_area();
    root.fill(&WHITE).map_err(failed)?;
    for (area, (name, title, factor, digits)) in root.split_evenly((rows, COLUMNS)).iter().zip(PANELS) {
        panel(area, report, name, title, factor, digits)?;
    }
    root.present().map_err(failed)
}

fn panel(
    area: &DrawingArea<SVGBackend<'_>, Shift>,
    report: &Report,
    name: &str,
    title: &str,
    factor: f64,
    digits: usize,
) -> Result<()> {
    area.draw(&Text::new(title, (10, 12), ("sans-serif", 20).into_font().color(&TEXT))).map_err(failed)?;
    let spreads: Vec<_> =
        Kind::ALL.into_iter().filter_map(|kind| Some((kind, report.spread(kind, name)?))).collect();
    let longest = spreads.iter().map(|(_, spread)| spread.max).fold(f64::MIN_POSITIVE, f64::max);
    let x = |value: f64| LEFT + (value / longest * LONGEST) as i32;
    for (row, (kind, spread)) in spreads.iter().enumerate() {
        let top = 42 + ROW * row as i32;
        let color = if kind.is_filtered() { OURS } else { OTHERS };
        let label = ("sans-serif", 17).into_font().color(&TEXT);
        area.draw(&Text::new(kind.name(), (10, top + 2), label.clone())).map_err(failed)?;
        let bar = Rectangle::new([(LEFT, top), (x(spread.median), top + ROW - 6)], color.filled());
        area.draw(&bar).map_err(failed)?;
        let middle = top + (ROW - 6) / 2;
        let whisker = vec![(x(spread.min), middle), (x(spread.max), middle)];
        area.draw(&PathElement::new(whisker, TEXT)).map_err(failed)?;
        let value = format!("{:.digits$}", spread.median * factor);
        area.draw(&Text::new(value, (x(spread.max) + 8, top + 2), label)).map_err(failed)?;
    }
    Ok(())
}

/// The backend's errors borrow from it.
fn failed(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("the plot: {error}")
}
