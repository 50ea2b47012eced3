//! A gRPC server that does nothing: the floor under any service. For each message it sends one of
//! the size that the message asks for.

use std::convert::Infallible;
use std::net::Ipv4Addr;
use std::task::{Context, Poll};

use anyhow::Result;
use bytes::Bytes;
use scone_service::announce::Listening;
use scone_service::grpc;
use tokio::net::TcpListener;
use tokio_stream::{Stream, StreamExt as _};
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Service, http};
use tonic::server::{NamedService, StreamingService};
use tonic::{Request, Response, Status, Streaming};

use super::grpc::Raw;

/// Its rpc.
pub const ECHO: &str = "/scone.bench.Echo/Echo";

/// Largest answer.
const MAX_ANSWER_BYTES: usize = 16 << 20;

/// A message of the size of `like` that asks for `answer_bytes` bytes.
///
/// # Panics
/// When `like` has less than 4 bytes.
pub fn question(like: &Bytes, answer_bytes: usize) -> Bytes {
    let mut message = like.to_vec();
    let size = (answer_bytes as u32).to_le_bytes();
    message[..size.len()].copy_from_slice(&size);
    message.into()
}

/// Serves on a free port until it is killed, with the threads and settings of embed-service; prints
/// the address as embed-service does.
///
/// # Errors
/// When it cannot.
pub fn serve() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let listener = grpc::bind((Ipv4Addr::LOCALHOST, 0).into()).await?;
        Listening {
            service: "echo",
            address: listener.local_addr()?,
            http: None,
            metrics: None,
        }
        .announce();
        answer_all(listener).await
    })
}

async fn answer_all(listener: TcpListener) -> Result<()> {
    let echo = Echo {
        answer: Bytes::from(vec![0; MAX_ANSWER_BYTES]),
    };
    let router = grpc::server_builder().add_service(echo);
    Ok(router.serve_with_incoming(grpc::incoming(listener)).await?)
}

#[derive(Clone)]
struct Echo {
    answer: Bytes,
}

impl NamedService for Echo {
    const NAME: &'static str = "scone.bench.Echo";
}

impl Service<http::Request<Body>> for Echo {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let echo = self.clone();
        Box::pin(async move { Ok(tonic::server::Grpc::new(Raw).streaming(echo, request).await) })
    }
}

type Answers = Box<dyn Stream<Item = Result<Bytes, Status>> + Send + Unpin>;

impl StreamingService<Bytes> for Echo {
    type Response = Bytes;
    type ResponseStream = Answers;
    type Future = BoxFuture<Response<Answers>, Status>;

    fn call(&mut self, request: Request<Streaming<Bytes>>) -> Self::Future {
        let answer = self.answer.clone();
        let answers = request.into_inner().map(move |message| {
            let size = size_asked_for(&message?)?;
            Ok(answer.slice(..size))
        });
        Box::pin(async { Ok(Response::new(Box::new(answers) as Answers)) })
    }
}

fn size_asked_for(message: &Bytes) -> Result<usize, Status> {
    let size = message.first_chunk().copied().map(u32::from_le_bytes);
    let size = size.map(|size| size as usize);
    size.filter(|&size| size <= MAX_ANSWER_BYTES)
        .ok_or_else(|| Status::invalid_argument("asks for no size, or for more than 16 MiB"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::{self, Connection as _};

    #[test]
    fn answers_with_as_many_bytes_as_asked_for() {
        let runtime = tokio::runtime::Runtime::new().expect("threads");
        let listener = runtime.block_on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)));
        let listener = listener.expect("a free port");
        let address = listener.local_addr().expect("its address").to_string();
        runtime.spawn(answer_all(listener));
        let mut stream = service::Stream::open(&address, ECHO).expect("a stream");
        let like = Bytes::from_static(&[7; 20]);
        for size in [0, 5, 100_000] {
            let question = question(&like, size);
            assert_eq!(question.len(), like.len());
            stream.ask(&question).expect("an answer");
            assert_eq!(stream.answer().len(), size);
        }
        let both = [question(&like, 1), question(&like, 2)];
        let answers = stream.ask_all(&both).expect("two answers");
        assert_eq!(answers.iter().map(Bytes::len).collect::<Vec<_>>(), [1, 2]);
        stream
            .ask(&question(&like, MAX_ANSWER_BYTES + 1))
            .expect_err("too much");
    }
}
