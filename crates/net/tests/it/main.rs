//! The client against a TLS server whose authority is the test's own.

mod silent;

use net::{Client, Kind};
use rcgen::{CertificateParams, CertifiedIssuer, KeyPair};
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;

/// Answers `hello` to everything on loopback, as `name`. Its port, and the certificate (DER) of its authority.
async fn serve(name: &str) -> (u16, Vec<u8>) {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(vec![name.to_owned()]).unwrap().signed_by(&key, &authority).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], PrivateKeyDer::try_from(key.serialize_der()).unwrap())
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                // A client that does not trust us leaves in the middle.
                let Ok(mut stream) = acceptor.accept(stream).await else { return };
                let mut asked = [0; 4096];
                if stream.read(&mut asked).await.is_ok_and(|bytes| bytes > 0) {
                    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\nhello";
                    stream.write_all(answer).await.unwrap();
                    stream.shutdown().await.unwrap();
                }
            });
        }
    });
    (port, authority.der().to_vec())
}

#[tokio::test]
async fn tls_is_spoken_to_whom_an_authority_vouches_for_and_to_nobody_else() {
    let (port, authority) = serve("localhost").await;
    let url = format!("https://localhost:{port}/");
    let client = Client::trusting(&authority).unwrap();
    let answer = client.get(&url).await.unwrap();
    assert_eq!((answer.status.as_u16(), &answer.bytes(16).await.unwrap()[..]), (200, &b"hello"[..]));
    // Nobody in the public list vouches for it, and nothing was asked.
    let refused = Client::new().get(&url).await.unwrap_err();
    assert!(refused.kind == Kind::Unreachable && refused.message.contains("UnknownIssuer"), "{refused}");
    // Another's certificate.
    let (port, authority) = serve("another.example").await;
    let refused = Client::trusting(&authority).unwrap().get(&format!("https://localhost:{port}/")).await.unwrap_err();
    assert_eq!(refused.kind, Kind::Unreachable, "{refused}");
    assert!(Client::trusting(b"no certificate").is_err());
    for address in ["ftp://localhost/", "localhost", "/", "https://"] {
        assert_eq!(Client::new().get(address).await.unwrap_err().kind, Kind::Usage, "{address}");
    }
}
