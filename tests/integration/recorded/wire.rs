//! Sends a case's request byte by byte as it was recorded, and takes what comes back.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::str::FromStr;

use bytes::{Buf, BufMut, Bytes};
use http::uri::PathAndQuery;
use tonic::client::Grpc;
use tonic::codec::{Codec, CompressionEncoding, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::metadata::{AsciiMetadataKey, AsciiMetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

use super::case::{Answer, Call, HttpAnswer};
use crate::sandbox::{Gateway, PATIENCE};

/// Sends calls to one gateway.
pub struct Wire {
    http: SocketAddr,
    grpc: Channel,
    runtime: tokio::runtime::Runtime,
}

impl Wire {
    /// Connects over gRPC; HTTP requests get a connection each.
    pub fn to(gateway: &Gateway) -> Wire {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let endpoint = Endpoint::from_shared(format!("http://{}", gateway.grpc)).unwrap();
        let grpc = runtime.block_on(endpoint.connect()).unwrap();
        Wire { http: gateway.http, grpc, runtime }
    }

    /// The answer to a call.
    pub fn send(&self, call: &Call) -> Answer {
        match call {
            Call::Http { method, path, headers, body } => {
                let headers: Vec<_> = headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
                match crate::http::call(self.http, method, path, &headers, body) {
                    answer if answer.status == 0 => Answer::Closed,
                    answer => Answer::Http(HttpAnswer { status: answer.status, headers: answer.headers, body: answer.body }),
                }
            }
            Call::Wire(bytes) => exchange(self.http, bytes),
            Call::Grpc { method, metadata, compression, messages } => {
                let called = call_grpc(self.grpc.clone(), method, metadata, *compression, messages.clone());
                self.runtime.block_on(async { tokio::time::timeout(PATIENCE, called).await.expect("an answer over gRPC") })
            }
        }
    }
}

/// Sends bytes, ends the sending half, and reads to the end.
fn exchange(address: SocketAddr, bytes: &[u8]) -> Answer {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    // The other side may close before it has read everything.
    drop(stream.write_all(bytes));
    // To the gateway a caller that ends its half has gone away; one that asks for the end of the connection gets its answer first.
    if !bytes.windows(17).any(|part| part.eq_ignore_ascii_case(b"connection: close")) {
        drop(stream.shutdown(Shutdown::Write));
    }
    let mut answer = Vec::new();
    // A reset is an end too; what came before it counts.
    if let Err(error) = stream.read_to_end(&mut answer) {
        crate::http::expect_an_end(&error);
    }
    Answer::read(answer)
}

async fn call_grpc(
    channel: Channel,
    method: &str,
    metadata: &[(String, String)],
    compression: Option<CompressionEncoding>,
    messages: Vec<Bytes>,
) -> Answer {
    let mut client = Grpc::new(channel);
    if let Some(encoding) = compression {
        client = client.send_compressed(encoding).accept_compressed(encoding);
    }
    let mut request = Request::new(tokio_stream::iter(messages));
    for (name, value) in metadata {
        let name = AsciiMetadataKey::from_str(name).unwrap();
        request.metadata_mut().insert(name, AsciiMetadataValue::try_from(value.as_str()).unwrap());
    }
    let mut received = Vec::new();
    let ended = receive(&mut client, method, request, &mut received).await;
    let (code, text) =
        ended.map_or_else(|status| (status.code(), status.message().to_owned()), |()| (tonic::Code::Ok, String::new()));
    Answer::Grpc { code: code as i32, text, messages: received }
}

/// On the wire a unary call is a stream of one message each way, so one way of calling does for all methods.
async fn receive(
    client: &mut Grpc<Channel>,
    method: &str,
    request: Request<tokio_stream::Iter<std::vec::IntoIter<Bytes>>>,
    received: &mut Vec<Bytes>,
) -> Result<(), Status> {
    client.ready().await.map_err(|error| Status::unknown(error.to_string()))?;
    let path = PathAndQuery::from_str(method).unwrap();
    let mut stream = client.streaming(request, path, RawCodec).await?.into_inner();
    while let Some(message) = stream.message().await? {
        received.push(message);
    }
    Ok(())
}

/// Messages as the bytes that they are, malformed ones too.
#[derive(Clone, Copy)]
struct RawCodec;

impl Codec for RawCodec {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = RawCodec;
    type Decoder = RawCodec;

    fn encoder(&mut self) -> RawCodec {
        RawCodec
    }

    fn decoder(&mut self) -> RawCodec {
        RawCodec
    }
}

impl Encoder for RawCodec {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, message: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(message);
        Ok(())
    }
}

impl Decoder for RawCodec {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}
