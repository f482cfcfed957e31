//! A trained model answers over HTTP as its actor does, and says what is wrong with a request.
#![cfg(feature = "torch")]

#[path = "support/training/mod.rs"]
mod training;

use std::net::SocketAddr;

use footlight::{
    actors::{
        model::{Model, ModelSpec},
        serving::{Gateway, Inference, InferenceSpec, Predict},
    },
    prelude::*,
    runtime::compute::DeviceChoice,
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use training::*;

/// One request on a connection of its own: the status and the body.
async fn request(
    to: SocketAddr,
    method: &str,
    path: &str,
    headers: &str,
    body: &[u8],
) -> (u16, String) {
    let mut stream = TcpStream::connect(to).await.unwrap();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: {to}\r\nConnection: close\r\n{headers}Content-Length: \
         {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    // A server that refuses need not read it all.
    let _ = stream.write_all(body).await;
    let mut answer = Vec::new();
    let mut part = [0; 4096];
    while let Ok(count @ 1..) = soon(stream.read(&mut part)).await {
        answer.extend_from_slice(&part[..count]);
    }
    let answer = String::from_utf8(answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").expect("an HTTP answer");
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

/// A gateway before a model that was trained a little, and the model's own actor.
async fn served(stage: &Stage) -> (Gateway, ActorRef<Inference>, u64) {
    let job = stage.job("served").epochs(1).workers(1);
    let mut job = soon(job.submit(&stage.seed)).await.unwrap();
    let report = soon(job.wait()).await.unwrap();
    let spec = InferenceSpec {
        model: ModelSpec::of::<Tiny>(),
        weights: job.weights().await.unwrap(),
        version: report.steps,
        device: DeviceChoice::Cpu,
    };
    let inference = soon(stage.seed.spawn::<Inference>(spec)).await.unwrap();
    // It has its weights: those of the job may go.
    soon(job.close()).await.unwrap();
    let models = [(Tiny::NAME.to_owned(), inference.clone())];
    let gateway = Gateway::serve("127.0.0.1:0".parse().unwrap(), models).await.unwrap();
    (gateway, inference, report.steps)
}

fn sample(number: usize) -> Vec<u8> {
    (0..SIDE * SIDE).map(|pixel| (pixel * 31 + number * 97) as u8).collect()
}

fn infer(input: Value) -> Vec<u8> {
    json!({ "inputs": [input] }).to_string().into_bytes()
}

const INFER: &str = "/v2/models/test.tiny/infer";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_over_http_is_the_actor_s_own() {
    let stage = Stage::set(&[], &[]).await;
    let (gateway, inference, steps) = served(&stage).await;
    let pixels: Vec<u8> = (0..3).flat_map(sample).collect();
    let samples = HostTensor::from_vec(pixels.clone(), &[3, SIDE, SIDE]).unwrap();
    let own = inference.call(Predict { samples }).await.unwrap().unwrap();
    assert_eq!((own.version, own.probabilities.shape()), (steps, &[3, 10][..]));
    let own = own.probabilities.as_slice::<f32>().unwrap().to_vec();
    assert!(own.chunks(10).all(|row| (row.iter().sum::<f32>() - 1.0).abs() < 1e-5));

    let nested: Vec<Vec<&[u8]>> =
        pixels.chunks(SIDE * SIDE).map(|image| image.chunks(SIDE).collect()).collect();
    let shape = [3, SIDE, SIDE];
    for (data, headers) in [
        (json!(pixels), "Content-Type: application/json\r\n"),
        (json!(nested), "Content-Type: application/json\r\n"),
        // As `tritonclient` asks.
        (json!(pixels), ""),
        (json!(pixels), "Content-Type: application/octet-stream\r\n"),
    ] {
        let input = json!({ "name": "x", "datatype": "UINT8", "shape": shape, "data": data });
        let body =
            json!({ "id": "7", "inputs": [input], "outputs": [{ "name": "probabilities" }] });
        let body = body.to_string().into_bytes();
        let (status, body) = request(gateway.addr(), "POST", INFER, headers, &body).await;
        assert_eq!(status, 200, "{body}");
        let answer: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(answer["model_name"], "test.tiny");
        assert_eq!(answer["model_version"], steps.to_string());
        assert_eq!(answer["id"], "7");
        let output = &answer["outputs"][0];
        assert_eq!(
            (&output["name"], &output["datatype"]),
            (&json!("probabilities"), &json!("FP32"))
        );
        assert_eq!(output["shape"], json!([3, 10]));
        let data: Vec<f32> = serde_json::from_value(output["data"].clone()).unwrap();
        assert_eq!(data, own);
    }
    for path in ["/v2/health/live", "/v2/health/ready"] {
        assert_eq!(request(gateway.addr(), "GET", path, "", b"").await.0, 200);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_request_gets_a_status_and_a_reason_and_the_next_good_one_an_answer() {
    let stage = Stage::set(&[], &[]).await;
    let (gateway, inference, _) = served(&stage).await;
    let input = |datatype: &str, shape: &[usize], data: Value| {
        infer(json!({ "name": "x", "datatype": datatype, "shape": shape, "data": data }))
    };
    let good = || input("UINT8", &[1, SIDE, SIDE], json!(sample(1)));
    let with = |value: Value| {
        let mut data = json!(sample(1));
        data[5] = value;
        input("UINT8", &[1, SIDE, SIDE], data)
    };
    let deep = format!("{{\"inputs\":{}", "[".repeat(100_000));
    let two = json!({ "name": "x", "datatype": "UINT8", "shape": [0], "data": [] });
    let cases: Vec<(u16, &str, &str, Vec<u8>, &str)> = vec![
        (
            404,
            "POST",
            "/v2/models/lenet5/infer",
            good(),
            "there is no model `lenet5`, but: test.tiny",
        ),
        (404, "POST", "/v2/nothing", good(), "no such route"),
        (405, "GET", INFER, vec![], "not for that method"),
        (405, "DELETE", "/v2/health/live", vec![], "not for that method"),
        (400, "POST", INFER, b"probabilities, please".to_vec(), "can't be read"),
        (400, "POST", INFER, vec![], "can't be read"),
        (400, "POST", INFER, vec![0xff; 100], "can't be read"),
        (400, "POST", INFER, deep.into_bytes(), "can't be read"),
        (400, "POST", INFER, b"{}".to_vec(), "inputs"),
        (
            400,
            "POST",
            INFER,
            json!({ "inputs": [] }).to_string().into(),
            "1 input is expected, 0 came",
        ),
        (400, "POST", INFER, json!({ "inputs": [two, two] }).to_string().into(), "2 came"),
        (
            400,
            "POST",
            INFER,
            input("FP32", &[1, SIDE, SIDE], json!(sample(1))),
            "UINT8 is expected",
        ),
        (400, "POST", INFER, input("UINT8", &[1, 7, 9], json!(sample(1))), "shape"),
        (400, "POST", INFER, input("UINT8", &[1, 7, 9], json!(vec![1; 63])), "is not [n, 8, 8]"),
        (400, "POST", INFER, input("UINT8", &[64], json!(sample(1))), "is not [n, 8, 8]"),
        (400, "POST", INFER, input("UINT8", &[2, 4, SIDE], json!(sample(1))), "is not [n, 8, 8]"),
        (400, "POST", INFER, input("UINT8", &[0, SIDE, SIDE], json!([])), "is not [n, 8, 8]"),
        (400, "POST", INFER, input("UINT8", &[1 << 62, 2, 2], json!([])), "x"),
        (
            400,
            "POST",
            INFER,
            input("UINT8", &[4097, SIDE, SIDE], json!(vec![0; 4097 * 64])),
            "1 to 4096",
        ),
        (400, "POST", INFER, with(json!(256)), "256 is not a whole number 0 to 255"),
        (400, "POST", INFER, with(json!(-1)), "-1 is not a whole number 0 to 255"),
        (400, "POST", INFER, with(json!(0.5)), "0.5 is not a whole number 0 to 255"),
        (400, "POST", INFER, with(json!("1")), "is not a number"),
        (400, "POST", INFER, with(json!(null)), "is not a number"),
        (413, "POST", INFER, vec![b' '; (32 << 20) + 1], "length limit"),
    ];
    for (expected, method, path, body, part) in cases {
        let (status, answer) = request(gateway.addr(), method, path, "", &body).await;
        let shown = String::from_utf8_lossy(&body[..body.len().min(80)]).into_owned();
        assert_eq!(status, expected, "{shown}: {answer}");
        let answer: Value = serde_json::from_str(&answer).unwrap_or_else(|_| panic!("{answer}"));
        let error = answer["error"].as_str().unwrap();
        assert!(error.contains(part), "{shown}: {part:?} is not in {error:?}");
        let (status, answer) = request(gateway.addr(), "POST", INFER, "", &good()).await;
        assert_eq!(status, 200, "after {shown}: {answer}");
    }

    // A model whose actor has ended.
    inference.stop();
    soon(inference.watch()).await;
    let (status, answer) = request(gateway.addr(), "POST", INFER, "", &good()).await;
    assert_eq!(status, 503, "{answer}");
    assert!(answer.contains("no such actor"), "{answer}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_is_for_this_machine_and_ends_with_its_handle() {
    let none: [(String, ActorRef<Inference>); 0] = [];
    let error = Gateway::serve("0.0.0.0:0".parse().unwrap(), none.clone()).await.unwrap_err();
    assert!(error.to_string().starts_with("0.0.0.0:0 is not loopback"), "{error}");
    let gateway = Gateway::serve("127.0.0.1:0".parse().unwrap(), none.clone()).await.unwrap();
    let addr = gateway.addr();
    let error = Gateway::serve(addr, none).await.unwrap_err().to_string();
    assert!(error.starts_with(&format!("cannot serve HTTP on {addr}: ")), "{error}");
    drop(gateway);
    until("the end of the gateway", async || TcpStream::connect(addr).await.is_err()).await;
}
