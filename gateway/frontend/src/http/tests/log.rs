//! What is logged of requests.

use std::fmt::{Debug, Write as _};
use std::sync::Mutex;

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber, span};

use super::*;

/// Keeps every line, with its level.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<(Level, String)>>>);

impl Lines {
    fn take(&self) -> Vec<(Level, String)> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        write!(self.0, "{field}={value:?} ").unwrap();
    }
}

impl Subscriber for Lines {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("bascule_frontend::http::dispatch")
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut line = Line(String::new());
        event.record(&mut line);
        self.0.lock().unwrap().push((*event.metadata().level(), line.0));
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

#[tokio::test]
async fn callers_can_fill_the_log_neither_with_length_nor_with_warnings() {
    let failing = FakeModel { fail_run_every: Some(1), ..identity(DataType::Int32, &[-1, 1]) };
    let port = Port::start(HttpSettings::default(), vec![model("m", 1, failing)]).await;
    let lines = Lines::default();
    let _logging = tracing::subscriber::set_default(lines.clone());
    let name = "n".repeat(30 << 10);
    let body = r#"{"inputs":[{"name":"x","shape":[1,1],"datatype":"INT32","data":[5]}]}"#;
    for (path, body, status, level) in [
        (format!("/v2/models/{name}/generate"), "{}".to_owned(), 501, Level::DEBUG),
        (format!("/v2/models/{name}/infer"), "{}".to_owned(), 404, Level::DEBUG),
        ("/v2/models/m/infer".to_owned(), body.replace("\"x\"", &format!("\"{}\"", "x".repeat(1 << 20))), 400, Level::DEBUG),
        ("/v2/models/m/infer".to_owned(), body.to_owned(), 500, Level::WARN),
    ] {
        let reply = port.post(&path, &[], body).await;
        assert_eq!(reply.status.as_u16(), status);
        assert!(reply.body.len() < 1200, "{}", reply.body.len());
        let logged = lines.take();
        let [(found, line)] = logged.as_slice() else { panic!("{logged:?}") };
        assert!(*found == level && line.len() < 1600 && line.contains(&format!("status={status}")), "{found} {line}");
    }
    port.stop().await;
}
