//! The HTTP door: the Open Inference Protocol v2 (KServe, Triton), JSON form.
//!
//! | route | answer |
//! | --- | --- |
//! | `GET /v2/health/live`, `GET /v2/health/ready` | 200 |
//! | `POST /v2/models/M/infer` | `{"model_name","model_version","outputs":[{"name":"probabilities",…}]}` |
//!
//! One input, datatype `UINT8`, shape `[n, …]`, data nested or flat. Errors are `{"error": text}`.
//! Loopback only: there is no way yet to tell who asks.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

use axum::{
    Json, Router,
    body::Bytes,
    extract::{DefaultBodyLimit, Path, State, rejection::BytesRejection},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use footlight_runtime::{ActorRef, Cause, Error, HostTensor, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::{net::TcpListener, sync::oneshot};

use super::inference::{Inference, Predict};

/// Longest request, in bytes.
const MAX_BODY: usize = 32 << 20;

/// A running HTTP server. Dropping it ends it.
#[derive(Debug)]
pub struct Gateway {
    addr: SocketAddr,
    _stop: oneshot::Sender<()>,
}

type Models = Arc<BTreeMap<String, ActorRef<Inference>>>;

#[derive(Deserialize)]
struct InferRequest {
    id: Option<String>,
    inputs: Vec<InferInput>,
}

#[derive(Deserialize)]
struct InferInput {
    name: String,
    shape: Vec<usize>,
    datatype: String,
    data: Value,
}

#[derive(Serialize)]
struct InferResponse {
    model_name: String,
    model_version: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    outputs: Vec<InferOutput>,
}

#[derive(Serialize)]
struct InferOutput {
    name: &'static str,
    datatype: &'static str,
    shape: Vec<usize>,
    data: Vec<f32>,
}

struct Refused(StatusCode, String);

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        (self.0, Json(serde_json::json!({ "error": self.1 }))).into_response()
    }
}

impl Gateway {
    /// Serves models under their names.
    ///
    /// # Errors
    /// An address that is not loopback, or can't be had.
    pub async fn serve(
        listen: SocketAddr,
        models: impl IntoIterator<Item = (String, ActorRef<Inference>)>,
    ) -> Result<Self> {
        if !listen.ip().is_loopback() {
            return Err(Error::other(format!(
                "{listen} is not loopback: anybody could ask there. Listen on 127.0.0.1 and put a \
                 proxy that knows its users in front"
            )));
        }
        let listener = TcpListener::bind(listen)
            .await
            .map_err(|error| Error::other(format!("cannot serve HTTP on {listen}: {error}")))?;
        let addr = listener.local_addr()?;
        let models: Models = Arc::new(models.into_iter().collect());
        let app = Router::new()
            .route("/v2/health/live", get(|| async {}))
            .route("/v2/health/ready", get(|| async {}))
            .route("/v2/models/{model}/infer", post(infer))
            .fallback(|| async {
                Refused(StatusCode::NOT_FOUND, "there is no such route".to_owned())
            })
            .method_not_allowed_fallback(|| async {
                let why = "this route is not for that method".to_owned();
                Refused(StatusCode::METHOD_NOT_ALLOWED, why)
            })
            .layer(DefaultBodyLimit::max(MAX_BODY))
            .with_state(models);
        let (stop, stopped) = oneshot::channel::<()>();
        #[expect(clippy::disallowed_methods, reason = "axum starts a task for each connection so")]
        tokio::spawn(async move {
            let served = axum::serve(listener, app)
                .with_graceful_shutdown(async {
                    let _ = stopped.await;
                })
                .await;
            if let Err(error) = served {
                tracing::error!(%error, "the HTTP gateway ended");
            }
        });
        Ok(Gateway { addr, _stop: stop })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }
}

// `tritonclient` sends no Content-Type, which axum's own JSON extractor would insist on.
async fn infer(
    State(models): State<Models>,
    Path(model): Path<String>,
    body: std::result::Result<Bytes, BytesRejection>,
) -> std::result::Result<Json<InferResponse>, Refused> {
    let bad = |why: String| Refused(StatusCode::BAD_REQUEST, why);
    let inference = models.get(&model).ok_or_else(|| {
        let known = models.keys().cloned().collect::<Vec<_>>().join(", ");
        Refused(StatusCode::NOT_FOUND, format!("there is no model `{model}`, but: {known}"))
    })?;
    let body = body.map_err(|rejected| Refused(rejected.status(), rejected.body_text()))?;
    let request: InferRequest = serde_json::from_slice(&body)
        .map_err(|error| bad(format!("the request can't be read: {error}")))?;
    let [input] = request.inputs.as_slice() else {
        return Err(bad(format!("1 input is expected, {} came", request.inputs.len())));
    };
    if input.datatype != "UINT8" {
        let (name, got) = (&input.name, &input.datatype);
        return Err(bad(format!("input `{name}` has datatype {got}, UINT8 is expected")));
    }
    let mut pixels = Vec::new();
    flatten(&input.data, &mut pixels)
        .map_err(|why| bad(format!("input `{}`: {why}", input.name)))?;
    let samples = HostTensor::from_vec(pixels, &input.shape)
        .map_err(|error| bad(format!("input `{}`: {error}", input.name)))?;
    let predicted = inference.call(Predict { samples }).await.map_err(|error| {
        let status = match error.cause() {
            Cause::Overloaded => StatusCode::TOO_MANY_REQUESTS,
            Cause::TimedOut(_) => StatusCode::GATEWAY_TIMEOUT,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        };
        Refused(status, error.to_string())
    })?;
    let predicted = predicted.map_err(bad)?;
    let probabilities = predicted.probabilities;
    let data = probabilities
        .as_slice::<f32>()
        .map_err(|error| Refused(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?
        .to_vec();
    Ok(Json(InferResponse {
        model_name: model,
        model_version: predicted.version.to_string(),
        id: request.id,
        outputs: vec![InferOutput {
            name: "probabilities",
            datatype: "FP32",
            shape: probabilities.shape().to_vec(),
            data,
        }],
    }))
}

/// Nested or flat numbers 0 to 255, one after another. serde_json bounds the depth.
fn flatten(data: &Value, bytes: &mut Vec<u8>) -> std::result::Result<(), String> {
    match data {
        Value::Array(items) => items.iter().try_for_each(|item| flatten(item, bytes)),
        Value::Number(number) => {
            let byte = number.as_u64().and_then(|number| u8::try_from(number).ok());
            bytes.push(byte.ok_or_else(|| format!("{number} is not a whole number 0 to 255"))?);
            Ok(())
        }
        other => Err(format!("{other} is not a number")),
    }
}
