//! Every setting of `gaterail serve`.

use crate::settings::{Kind, Setting};

const ONE: Setting = Setting { name: "", also: &[], kind: Kind::One, value: "", default: "", help: "" };
const MANY: Setting = Setting { kind: Kind::Many, ..ONE };
const SWITCH: Setting = Setting { kind: Kind::Switch, ..ONE };

/// Settings whose values are not shown.
pub const SECRET: [&str; 2] = ["api-key", "join-token"];

pub static TABLE: [Setting; 64] = [
    Setting {
        name: "model",
        kind: Kind::Positional,
        value: "MODEL",
        help: "A Hugging Face folder, a GGUF file, or ORG/NAME that `gaterail pull` has fetched; the demo model where there is none",
        ..ONE
    },
    Setting {
        name: "listen",
        value: "ADDRESS",
        default: "127.0.0.1:8000",
        help: "Where HTTP is answered. An address that others can reach needs keys, or --insecure",
        ..ONE
    },
    Setting { name: "host", value: "HOST", help: "The host of --listen alone", ..ONE },
    Setting { name: "port", value: "PORT", help: "The port of --listen alone", ..ONE },
    Setting {
        name: "grpc-listen",
        value: "ADDRESS",
        help: "Where gRPC is answered; nowhere unless this is given",
        ..ONE
    },
    Setting {
        name: "tls-cert",
        value: "FILE",
        help: "HTTP and gRPC are answered over TLS, with this certificate in PEM and those that lead to its CA",
        ..ONE
    },
    Setting { name: "tls-key", value: "FILE", help: "The key of --tls-cert", ..ONE },
    Setting {
        name: "weights",
        value: "KIND",
        default: "auto",
        help: "The precision of experts, projections and head: auto, stored, f32, bf16, int8 or int4",
        ..ONE
    },
    Setting {
        name: "kv-cache-dtype",
        value: "KIND",
        default: "auto",
        help: "What the KV cache stores: auto, f32 or f16",
        ..ONE
    },
    Setting {
        name: "packed-cache",
        value: "WHERE",
        default: "auto",
        help: "Where packed weights are kept for the next start: off, auto (the user's cache folder) or a folder",
        ..ONE
    },
    Setting {
        name: "device",
        value: "DEVICE",
        default: "auto",
        help: "Where to run: auto, cpu, cuda or cuda:N",
        ..ONE
    },
    Setting { name: "threads", value: "N", help: "Threads to compute with; all cores by default", ..ONE },
    Setting {
        name: "workers",
        value: "N",
        help: "Processes of this machine that hold the experts, started and watched; 2 for the demo model, else 0",
        ..ONE
    },
    Setting {
        name: "worker-devices",
        value: "DEVICE",
        kind: Kind::Many,
        default: "cpu",
        help: "Where each of --workers computes, one for each or one for all: cpu, cuda:N, or auto (the next card that nobody has, else the CPU). A card belongs to one worker, and takes experts in 4 and 8 bits",
        ..ONE
    },
    Setting {
        name: "parallel",
        value: "HOW",
        help: "How experts are spread over workers: ep (whole experts), tp (each cut over all), ep:N,tp:M (both), or auto (no workers where all fits here, else what is predicted to be fastest)",
        ..ONE
    },
    Setting {
        name: "overlap-rows",
        value: "N|auto|off",
        default: "off",
        help: "Batches of so many rows are two micro-batches that take turns, so that router and workers compute at once; auto: from 128 rows on where no worker shares this machine's cores, else off. What it wins has not been measured over a network, so that it is off unless it is asked for",
        ..ONE
    },
    Setting {
        name: "exchange-rows",
        value: "HOW",
        default: "auto",
        help: "Which rows of a batch a worker gets: all, chosen (those that it holds an expert of), or auto (whichever moves fewer bytes, call by call); answers are the same",
        ..ONE
    },
    Setting {
        name: "expert-copies",
        value: "N",
        default: "1",
        help: "Workers that hold each expert: with 2 the death of one needs no loading",
        ..ONE
    },
    Setting {
        name: "replica-memory",
        value: "BYTES",
        help: "For further copies of the experts that are hit most, over all workers together; none by default",
        ..ONE
    },
    Setting {
        name: "rebalance-gain",
        value: "PART",
        default: "0.05",
        help: "Copies follow what is hot where that shortens the slowest worker's time by more than this part of it",
        ..ONE
    },
    Setting {
        name: "rebalance-seconds",
        value: "S",
        default: "30",
        help: "And not more often than this",
        ..ONE
    },
    Setting { name: "local-experts", help: "Let this process hold experts, beside its workers", ..SWITCH },
    Setting {
        name: "cluster-listen",
        value: "ADDRESS",
        help: "Where workers join; an address that others can reach needs --cluster-certs or --join-token. By default a port for the processes of --workers alone",
        ..ONE
    },
    Setting {
        name: "cluster-certs",
        value: "DIR",
        help: "A folder of `gaterail certs init`: workers join over TLS, and only with a certificate of its CA",
        ..ONE
    },
    Setting {
        name: "cluster-tls-cert",
        value: "FILE",
        help: "The certificate that is shown to workers, in PEM, with those that lead to its CA",
        ..ONE
    },
    Setting { name: "cluster-tls-key", value: "FILE", help: "The key of --cluster-tls-cert", ..ONE },
    Setting {
        name: "cluster-tls-ca",
        value: "FILE",
        help: "Only workers with a certificate of this CA, for clients and with a worker's name, may join; without a token where none is given",
        ..ONE
    },
    Setting {
        name: "cluster-worker-name",
        value: "NAME",
        help: "The name (SAN) that workers' certificates have to have; by default the one that `gaterail certs init` gives them: certificates that another CA signed for anything else open nothing",
        ..ONE
    },
    Setting {
        name: "join-token",
        value: "TOKEN",
        help: "What workers have to bring; better in a variable or a file than on the command line",
        ..ONE
    },
    Setting { name: "join-token-file", value: "FILE", help: "A file with the join token alone", ..ONE },
    Setting {
        name: "wait-for-workers",
        value: "N",
        help: "Workers that are waited for before experts are spread; by default as many as --workers and --parallel say",
        ..ONE
    },
    Setting {
        name: "join-seconds",
        value: "S",
        default: "30",
        help: "So long after the first worker joined, those who are there begin if all experts fit on them",
        ..ONE
    },
    Setting {
        name: "worker-silence-seconds",
        value: "S",
        default: "0.8",
        help: "A worker that is not heard for so long is taken for dead",
        ..ONE
    },
    Setting {
        name: "workers-gone-seconds",
        value: "S",
        default: "120",
        help: "How long answers wait for workers when too few are left to hold all experts",
        ..ONE
    },
    Setting {
        name: "no-shared-memory",
        help: "Rows travel over the network to workers of this machine, too",
        ..SWITCH
    },
    Setting {
        name: "max-batch",
        also: &["max-num-seqs"],
        value: "N",
        default: "16",
        help: "Sequences that run at once (vLLM: --max-num-seqs)",
        ..ONE
    },
    Setting {
        name: "max-context",
        also: &["max-model-len"],
        value: "TOKENS",
        help: "Prompt and answer of one sequence together; the model's own context by default (vLLM: --max-model-len)",
        ..ONE
    },
    Setting {
        name: "step-tokens",
        also: &["max-num-batched-tokens"],
        value: "TOKENS",
        default: "512",
        help: "Tokens of one step, prompts and answers together (vLLM: --max-num-batched-tokens)",
        ..ONE
    },
    Setting {
        name: "kv-memory",
        also: &["kv-cache-memory-bytes"],
        value: "BYTES",
        help: "Memory for KV, such as 4GiB; by default what --max-batch sequences need, as far as memory allows",
        ..ONE
    },
    Setting {
        name: "served-model-name",
        value: "NAME",
        help: "What clients call the model; may be given several times. By default its place or name",
        ..MANY
    },
    Setting {
        name: "api-key",
        value: "KEY",
        help: "A key that clients have to send, without limits, and a tenant of its own; better in a variable than on the command line",
        ..MANY
    },
    Setting {
        name: "keys",
        value: "FILE",
        help: "The file of `gaterail keys`; gaterail/keys.json in the user's configuration by default",
        ..ONE
    },
    Setting { name: "insecure", help: "Listen where others can reach it, without keys", ..SWITCH },
    Setting {
        name: "max-queue",
        value: "N",
        default: "256",
        help: "Requests that may wait; the next is refused with a time to come again. Where several tenants have keys, each may have as many waiting as it leaves free",
        ..ONE
    },
    Setting {
        name: "max-queue-tokens",
        value: "TOKENS",
        default: "1048576",
        help: "Prompt tokens of the requests that may wait, shared in the same way",
        ..ONE
    },
    Setting {
        name: "no-prefix-cache",
        also: &["no-enable-prefix-caching"],
        help: "Forget a prompt's KV with its request (vLLM: --no-enable-prefix-caching)",
        ..SWITCH
    },
    Setting {
        name: "generation-config",
        value: "WHICH",
        default: "auto",
        help: "auto takes sampling defaults from the model's generation_config.json; off (or vllm) takes OpenAI's",
        ..ONE
    },
    Setting {
        name: "cors-origin",
        value: "ORIGIN",
        help: "Web pages that may call, such as https://chat.example; * is all. By default all if keys are needed, else this machine's",
        ..MANY
    },
    Setting {
        name: "allowed-hosts",
        value: "HOST",
        help: "More names by which a server without keys may be called (the Host header), such as gpu.example; * is all. By default those of this machine where it listens for this machine only, else all",
        ..MANY
    },
    Setting { name: "max-body", value: "BYTES", default: "32MiB", help: "Bytes of a request's body", ..ONE },
    Setting {
        name: "max-bodies",
        value: "BYTES",
        default: "256MiB",
        help: "Bytes of all bodies that are being read; a client may have as much of them as it leaves free",
        ..ONE
    },
    Setting { name: "max-connections", value: "N", default: "4096", help: "Connections at once", ..ONE },
    Setting {
        name: "header-seconds",
        value: "S",
        default: "30",
        help: "Time for a request's headers to arrive, and for a connection to be idle",
        ..ONE
    },
    Setting { name: "body-seconds", value: "S", default: "60", help: "Time for a body to arrive", ..ONE },
    Setting {
        name: "request-seconds",
        value: "S",
        default: "3600",
        help: "Time for an answer to be whole",
        ..ONE
    },
    Setting {
        name: "stall-seconds",
        value: "S",
        default: "30",
        help: "How long a client may take nothing of its answer",
        ..ONE
    },
    Setting {
        name: "keep-alive-seconds",
        value: "S",
        default: "15",
        help: "A stream with nothing to say sends a comment this often",
        ..ONE
    },
    Setting {
        name: "drain-seconds",
        value: "S",
        default: "30",
        help: "After SIGTERM: how long running answers may take",
        ..ONE
    },
    Setting {
        name: "drain-grace-seconds",
        value: "S",
        default: "0",
        help: "After SIGTERM: how long requests are still taken while /readyz already says no",
        ..ONE
    },
    Setting {
        name: "log",
        value: "FORMAT",
        default: "text",
        help: "One line for every request on standard error: text, off, or json, where everything else that is said there is an object of JSON on a line, too",
        ..ONE
    },
    Setting { name: "no-metric-aliases", help: "Leave vLLM's names out of /metrics", ..SWITCH },
    Setting { name: "no-memory-check", help: "Load even if weights and KV do not fit in memory", ..SWITCH },
    Setting {
        name: "config",
        value: "FILE",
        help: "A TOML file with these settings; gaterail/serve.toml in the user's configuration if it is there",
        ..ONE
    },
    Setting { name: "print-config", help: "Show every setting with its origin, and end", ..SWITCH },
];
