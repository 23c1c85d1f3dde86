/** An I/O thread: makes its own tree and buffers, and serves requests until the mount is gone. */

import { parentPort, workerData } from "node:worker_threads";
import { ClusterCache } from "../formats/compression/cluster-cache.ts";
import { serveRequests } from "../fuse/request-loop.ts";
import { Tree } from "../tree/tree.ts";
import { type IoThreadData, type IoThreadMessage, waitForStart } from "./io-threads.ts";

const data: IoThreadData = workerData;
const tree = new Tree(data.tree, { clusterCache: new ClusterCache() }, data.thread);
const options = waitForStart(data);
const message: IoThreadMessage = "serving";
parentPort?.postMessage(message);
serveRequests({ tree, ownership: data.ownership }, options);
