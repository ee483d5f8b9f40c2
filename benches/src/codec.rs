//! JSON of a large tensor: the gateway's own reader and writer beside the fastest parsers that are kept.

use std::hint::black_box;
use std::time::Instant;

use anyhow::{Result, ensure};
use bascule_frontend::codec::{self, Framing, NanStyle, Rendered};
use bascule_runtime_api::Tensor;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::Plan;
use crate::bars::{Bar, Bars};
use crate::calls::Input;
use crate::cores::hold_this_thread;
use crate::report::Report;
use crate::stats::median;

/// An image. Its values have six digits behind the point at the most.
const IMAGE: Input<'_> = Input { model: "image", name: "x", shape: &[1, 3, 224, 224] };
const LIMIT_BYTES: usize = 64 << 20;

/// A request as a general parser reads it, with the elements straight in a vector of their type.
#[derive(Deserialize)]
struct Request {
    inputs: Vec<Typed>,
}

#[derive(Serialize, Deserialize)]
struct Typed {
    name: String,
    datatype: String,
    shape: Vec<i64>,
    data: Vec<f32>,
}

#[derive(Serialize)]
struct Answer {
    model_name: String,
    model_version: String,
    outputs: Vec<Typed>,
}

/// Compares times on one core, without a server.
pub(crate) fn measure(plan: &Plan, report: &mut Report, bars: &mut Bars) -> Result<()> {
    let measured = std::thread::scope(|scope| scope.spawn(|| on_one_core(plan)).join());
    let Measured { read, read_long, written } = measured.map_err(|_| anyhow::anyhow!("a codec panicked"))??;
    let mut rows = Vec::new();
    let names = ["bascule", "serde_json", "sonic-rs"];
    for (what, times) in [("read", &read), ("read with all their digits", &read_long), ("write", &written)] {
        let ratios: Vec<f64> =
            times.iter().map(|[ours, others @ ..]| ours / others.iter().copied().fold(f64::INFINITY, f64::min)).collect();
        let name = format!("JSON of {} floats, {what}: time ÷ the fastest kept parser's", IMAGE.values().count());
        bars.add(&name, Bar::AtMost(1.2), &ratios, "");
        for (place, name) in names.iter().enumerate() {
            let time = median(&times.iter().map(|times| times[place]).collect::<Vec<_>>());
            rows.push(vec![what.to_owned(), (*name).to_owned(), format!("{time:.2}")]);
        }
    }
    report.table("JSON of a large tensor", &["what", "by", "ms"], &rows);
    Ok(())
}

type Times = Vec<[f64; 3]>;

#[derive(Default)]
struct Measured {
    read: Times,
    /// Doubles as numpy writes them, with up to seventeen digits.
    read_long: Times,
    written: Times,
}

/// Times of reading a request, by each parser.
fn times_to_read(body: &Bytes) -> Result<[f64; 3]> {
    let (ours, decoded) = timed(|| Ok(codec::decode(body, Framing::Json, LIMIT_BYTES)?))?;
    let (serde, general) = timed(|| Ok(serde_json::from_slice::<Request>(body)?))?;
    let (sonic, _) = timed(|| Ok(sonic_rs::from_slice::<Request>(body)?))?;
    let elements = decoded.infer.inputs[0].tensor.elements::<f32>().unwrap_or_default();
    let general = &general.inputs[0].data;
    // General parsers round a double to a single: now and then to the neighbour of the nearest.
    let are_alike = elements.iter().zip(general).all(|(ours, theirs)| (ours - theirs).abs() <= f32::EPSILON);
    ensure!(elements.len() == general.len() && are_alike, "parsers disagree");
    Ok([ours, serde, sonic])
}

/// A request whose numbers have the digits of doubles that nothing was rounded of.
fn long_body() -> Bytes {
    let values: Vec<f64> = IMAGE.values().map(|value| f64::from(value).sin() / 3.0).collect();
    let (shape, data) = (serde_json::json!(IMAGE.shape), serde_json::json!(values));
    format!(r#"{{"inputs":[{{"name":"x","shape":{shape},"datatype":"FP32","data":{data}}}]}}"#).into()
}

fn on_one_core(plan: &Plan) -> Result<Measured> {
    hold_this_thread(plan.cores.server)?;
    let (body, long) = (IMAGE.json().body, long_body());
    let values: Vec<f32> = IMAGE.values().collect();
    let tensor = Tensor::from_elements(IMAGE.shape, &values)?;
    let answer = Answer {
        model_name: IMAGE.model.to_owned(),
        model_version: "1".to_owned(),
        outputs: vec![Typed {
            name: "y".to_owned(),
            datatype: "FP32".to_owned(),
            shape: IMAGE.shape.to_vec(),
            data: values.clone(),
        }],
    };
    let mut measured = Measured::default();
    // The first pair warms up and does not count.
    for pair in 0..=plan.pairs {
        let (read, read_long) = (times_to_read(&body)?, times_to_read(&long)?);
        let rendered = [Rendered { name: "y", tensor: tensor.clone(), binary: false }];
        let (own, text) = timed(|| Ok(codec::encode(None, IMAGE.model, 1, &rendered, NanStyle::Bare)?))?;
        let (by_serde, other) = timed(|| Ok(serde_json::to_vec(&answer)?))?;
        let (by_sonic, _) = timed(|| Ok(sonic_rs::to_vec(&answer)?))?;
        ensure!(text.json.len().abs_diff(other.len()) < 64, "writers disagree");
        if pair > 0 {
            measured.read.push(read);
            measured.read_long.push(read_long);
            measured.written.push([own, by_serde, by_sonic]);
        }
    }
    Ok(measured)
}

/// Milliseconds of the quickest of a few, and what came of it.
fn timed<T>(work: impl Fn() -> Result<T>) -> Result<(f64, T)> {
    let mut best = f64::INFINITY;
    let mut result = None;
    for _ in 0..5 {
        let started = Instant::now();
        let made = black_box(work()?);
        best = best.min(started.elapsed().as_secs_f64() * 1e3);
        result = Some(made);
    }
    result.map(|result| (best, result)).ok_or_else(|| anyhow::anyhow!("nothing was measured"))
}
