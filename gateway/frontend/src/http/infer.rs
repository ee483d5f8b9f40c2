//! Inference: body, route, codec, engine, codec.
//!
//! What takes long on a processor (large JSON, tensors that are walked or copied, classes, compression) runs on the blocking pool, so that
//! it never holds up other requests of the same thread. The table that decides is read once, after the body is there; before, a glance tells
//! whether the body would come in vain. Deliberately absent: retries.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bascule_runtime_api::Tensor;
use bascule_serving::{InferError, InferResponse, RouteKey, Routed, VersionChoice};
use bytes::Bytes;
use hyper::header::{CONTENT_ENCODING, HeaderName, HeaderValue};
use hyper::{HeaderMap, StatusCode};
use smallvec::SmallVec;

use super::answer::{Answer, JSON, OCTETS, answer};
use super::body::{Room, Upload, collect};
use super::compression::{Coding, pack, unpack};
use super::dispatch::{Call, Context};
use super::failure::Failure;
use super::headers::{InferHeaders, JSON_BYTES};
use crate::answered_by::tell_version;
use crate::codec::{
    DecodedRequest, Encoded, Framing, NanStyle, OutputChoice, OutputChoices, Rendered, classify, decode, decode_raw, encode,
    json_bytes, outline,
};

/// JSON beyond this is read and written on the blocking pool: about a fifth of a millisecond.
const LARGE_JSON_BYTES: usize = 64 << 10;

/// The same of tensors that are walked or copied, which takes less for each byte.
const LARGE_TENSOR_BYTES: usize = 512 << 10;

/// Finding a class's place and writing it takes as long as so many bytes of JSON.
const CLASS_BYTES: usize = 48;

/// Answers below this are not worth compressing.
const MIN_PACKED_BYTES: usize = 256;

pub(crate) async fn infer(
    context: &Arc<Context>,
    call: &Call,
    name: &str,
    version: Option<u64>,
    headers: &HeaderMap,
    body: &mut Upload,
) -> Result<Answer, Failure> {
    let headers = InferHeaders::read(headers)?;
    let named = match headers.version {
        Some(VersionChoice::Number(number)) => version.or(Some(number)),
        _ => version,
    };
    context.serving.router().check_room(name, named)?;
    let room = Arc::new(context.budget.room(context.settings.max_body_bytes));
    let body = whole_body(context, &headers, &room, body).await?;
    let deadline = after(call.arrived, headers.timeout);
    let routed = context.serving.route(name, deadline).await?;
    let decoded = read(context, &headers, version, &routed, body).await?;
    context.meters.decoded(decoded.ignored, decoded.copied);
    let DecodedRequest { id, mut infer, timeout, outputs, .. } = decoded;
    infer.version = asked(version, &headers, infer.version);
    infer.key = headers.key.map_or(infer.key, RouteKey::Caller);
    infer.deadline = [deadline, after(call.arrived, timeout)].into_iter().flatten().min();
    let response = context.serving.infer(routed, &infer).await?;
    // The inputs, and with them the body, are no longer needed; an answer may share their bytes all the same.
    drop(infer);
    let writing = Writing { id, response, outputs, nan: context.settings.nan };
    let mut written = write(context, writing, headers.wanted).await?;
    // From here on the answer takes the room, until it is sent.
    room.settle(usize::try_from(written.body().bytes()).unwrap_or(usize::MAX));
    written.body_mut().keep(room);
    Ok(written)
}

/// The number in the path, else the header, else the body's parameter.
fn asked(path: Option<u64>, headers: &InferHeaders, parameter: VersionChoice) -> VersionChoice {
    path.map(VersionChoice::Number).or_else(|| headers.version.clone()).unwrap_or(parameter)
}

/// A time-out too long for the clock is none.
fn after(arrived: Instant, timeout: Option<Duration>) -> Option<Instant> {
    timeout.and_then(|timeout| arrived.checked_add(timeout))
}

/// The body, unpacked, with its binary section aligned.
async fn whole_body(context: &Arc<Context>, headers: &InferHeaders, room: &Arc<Room>, body: &mut Upload) -> Result<Bytes, Failure> {
    let offset = match headers.framing {
        Framing::Split { json_bytes } => json_bytes,
        Framing::Json | Framing::Raw => 0,
    };
    match headers.coding {
        None => collect(body, offset, room, &context.settings).await,
        Some(coding) => {
            let packed = collect(body, 0, room, &context.settings).await?;
            let room = Arc::clone(room);
            // Always there: how much comes out is not known before.
            context.blocking(move || unpack(coding, &packed, offset, &room)).await
        }
    }
}

async fn read(
    context: &Context,
    headers: &InferHeaders,
    version: Option<u64>,
    routed: &Routed,
    body: Bytes,
) -> Result<DecodedRequest, Failure> {
    let (framing, limit) = (headers.framing, context.settings.max_body_bytes);
    if routed.route().servables().next().is_none() {
        // That no version answers wins over what is wrong with the body.
        routed.servable(&asked(version, headers, VersionChoice::Split))?;
    }
    if framing == Framing::Raw {
        let servable = Arc::clone(routed.servable(&asked(version, headers, VersionChoice::Split))?);
        // A fixed size is only pointed at.
        let copied = servable.signature().inputs.iter().any(|input| input.datatype.element_bytes().is_none());
        let large = copied && body.len() > LARGE_TENSOR_BYTES;
        let decode = move || Ok(decode_raw(body, servable.signature(), servable.is_batched())?);
        return if large { context.blocking(decode).await } else { decode() };
    }
    let json_bytes = match framing {
        Framing::Split { json_bytes } => json_bytes.min(body.len()),
        Framing::Json | Framing::Raw => body.len(),
    };
    if json_bytes > LARGE_JSON_BYTES {
        return context.blocking(move || Ok(decode(&body, framing, limit)?)).await;
    }
    let outline = outline(&body, framing, limit)?;
    if outline.work_bytes() > LARGE_TENSOR_BYTES {
        return context.blocking(move || Ok(outline.fill()?)).await;
    }
    Ok(outline.fill()?)
}

/// What is needed to write an answer.
struct Writing {
    id: Option<String>,
    response: InferResponse,
    outputs: OutputChoices,
    nan: NanStyle,
}

async fn write(context: &Context, writing: Writing, wanted: Option<Coding>) -> Result<Answer, Failure> {
    let large = {
        let outputs = &writing.response.outputs;
        let bytes = outputs.iter().map(|(_, tensor)| tensor.bytes().len()).sum::<usize>();
        let written = work_bytes(&writing);
        written > LARGE_JSON_BYTES || wanted.is_some() && bytes > LARGE_JSON_BYTES
    };
    if large { context.blocking(move || writing.written(wanted)).await } else { writing.written(wanted) }
}

/// About how much JSON an answer has, or as how much it takes to write it.
fn work_bytes(writing: &Writing) -> usize {
    let specs = &writing.response.servable.signature().outputs;
    let outputs = writing.response.outputs.iter().filter_map(|(index, tensor)| Some((specs.get(*index)?, tensor)));
    outputs.map(|(spec, tensor)| output_bytes(&spec.name, tensor, writing.outputs.of(&spec.name))).sum()
}

fn output_bytes(name: &str, tensor: &Tensor, choice: OutputChoice) -> usize {
    if choice.classes == 0 {
        return json_bytes(name, tensor, choice.binary);
    }
    // Every element is looked at, however few are kept. Where the rows of a batch have several dimensions, this counts too many.
    let elements = tensor.element_count();
    let columns = tensor.shape().last().and_then(|columns| usize::try_from(*columns).ok()).unwrap_or(1).max(1);
    let kept = choice.classes.saturating_mul(elements / columns).min(elements);
    elements.saturating_add(kept.saturating_mul(CLASS_BYTES))
}

impl Writing {
    fn written(self, wanted: Option<Coding>) -> Result<Answer, Failure> {
        let encoded = self.encoded()?;
        let servable = &self.response.servable;
        let Encoded { json, binary, has_binary } = encoded;
        let json_bytes = json.len();
        let mut parts: SmallVec<[Bytes; 4]> = SmallVec::with_capacity(1 + binary.len());
        parts.push(json.into());
        parts.extend(binary);
        let coding = wanted.filter(|_| parts.iter().map(Bytes::len).sum::<usize>() >= MIN_PACKED_BYTES);
        if let Some(coding) = coding {
            let packed = pack(coding, parts.iter().map(AsRef::as_ref));
            parts.clear();
            parts.push(packed.map_err(|error| InferError::Internal { message: format!("an answer can't be packed: {error}") })?);
        }
        let mut answer = answer(StatusCode::OK, if has_binary { OCTETS } else { JSON }, parts);
        let headers = answer.headers_mut();
        if has_binary {
            headers.insert(HeaderName::from_static(JSON_BYTES), HeaderValue::from(json_bytes));
        }
        if let Some(coding) = coding {
            headers.insert(CONTENT_ENCODING, coding.name());
        }
        tell_version(headers, servable);
        Ok(answer)
    }

    fn encoded(&self) -> Result<Encoded, InferError> {
        let servable = &self.response.servable;
        let specs = &servable.signature().outputs;
        let mut rendered: SmallVec<[Rendered<'_>; 1]> = SmallVec::new();
        for (index, tensor) in &self.response.outputs {
            let Some(spec) = specs.get(*index) else {
                return Err(InferError::Internal { message: format!("the answer has an output {index} that the signature lacks") });
            };
            let choice = self.outputs.of(&spec.name);
            let tensor = match choice.classes {
                0 => tensor.clone(),
                classes => classify(&spec.name, tensor, classes, servable.is_batched(), servable.labels(&spec.name))?,
            };
            rendered.push(Rendered { name: &spec.name, tensor, binary: choice.binary });
        }
        encode(self.id.as_deref(), servable.model(), servable.version(), &rendered, self.nan)
    }
}

#[cfg(test)]
mod tests {
    use bascule_runtime_api::DataType;

    use super::*;

    #[test]
    fn classes_count_by_the_elements_that_they_are_chosen_from() {
        let bytes = |classes, shape: &[i64]| {
            let elements = shape.iter().product::<i64>() as usize;
            let tensor = Tensor::new(DataType::Uint8, shape, vec![0; elements].into()).unwrap();
            output_bytes("y", &tensor, OutputChoice { binary: true, classes })
        };
        assert!(bytes(0, &[1 << 20]) < LARGE_JSON_BYTES);
        assert!(bytes(1, &[1 << 20]) > LARGE_JSON_BYTES);
        assert!(bytes(1_000_000_000, &[1, 2_000]) > LARGE_JSON_BYTES);
        assert!(bytes(5, &[8, 1_000]) < LARGE_JSON_BYTES);
    }
}
