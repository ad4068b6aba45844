//! Cancels statements on the server.

use std::future::{Ready, ready};
use std::io::Result;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::Client;
use tokio_postgres::tls::{ChannelBinding, TlsConnect, TlsStream};

/// The server process, as the server reported it at login.
///
/// The library reveals it only to the server, inside a cancel request. So we have it write such a
/// request onto paper.
pub fn backend(client: &Client) -> Option<i32> {
    let mut paper = Vec::new();
    let request = client.cancel_token();
    let written = request.cancel_query_raw(Paper(&mut paper), Stamp);
    let mut context = Context::from_waker(Waker::noop());
    // Paper never blocks.
    let Poll::Ready(Ok(())) = pin!(written).poll(&mut context) else {
        return None;
    };
    // The request ends with the process and its secret key.
    let (_, end) = paper.split_last_chunk::<8>()?;
    let (process, _) = end.split_first_chunk::<4>()?;
    Some(i32::from_be_bytes(*process))
}

/// Records what is written, and accepts every request for TLS.
struct Paper<'a>(&'a mut Vec<u8>);

/// TLS on paper.
struct Stamp;

impl<'a> TlsConnect<Paper<'a>> for Stamp {
    type Stream = Paper<'a>;
    type Error = std::io::Error;
    type Future = Ready<std::result::Result<Paper<'a>, std::io::Error>>;

    fn connect(self, paper: Paper<'a>) -> Self::Future {
        ready(Ok(paper))
    }
}

impl TlsStream for Paper<'_> {
    fn channel_binding(&self) -> ChannelBinding {
        ChannelBinding::none()
    }
}

impl AsyncRead for Paper<'_> {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<Result<()>> {
        buffer.put_slice(&b"S"[..buffer.remaining().min(1)]);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Paper<'_> {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<Result<usize>> {
        self.get_mut().0.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Result<()>> {
        Poll::Ready(Ok(()))
    }
}
