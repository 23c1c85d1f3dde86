/** The life of an I/O thread: read a request, handle it, write the reply; until the mount is gone. */

import { constants } from "node:os";
import { errnoName } from "../syscalls/errno-names.ts";
import { errno, read, write } from "../syscalls/libc.ts";
import type { RequestProgress } from "../threads/request-progress.ts";
import type { ThreadCrew } from "../threads/thread-crew.ts";
import { createTrace, type Trace, writeLine } from "../trace.ts";
import { IN_HEADER_SIZE, OUT_HEADER_SIZE, REPLY, REQUEST } from "./abi.ts";
import { notifyStaleAttributes, notifyStalePages } from "./notify.ts";
import { type Operation, operationTable, type Server, UNKNOWN_OPERATION } from "./opcodes.ts";
import { NO_REPLY, Request } from "./request.ts";
import { reportFailure } from "./request-failure.ts";

const { EINTR, ENODEV, ENOENT } = constants.errno;

/** What a thread is given to serve a mount. */
export interface RequestServerOptions {
  /** A descriptor of the session, best one of its own. */
  readonly fd: number;
  /** Bytes of the largest READ or WRITE that was negotiated. */
  readonly dataMax: number;
  /** The threads that serve the same session; undefined: this one alone does. */
  readonly crew?: ThreadCrew | undefined;
  /** Told when requests begin and end. */
  readonly progress?: RequestProgress | undefined;
}

/** How a turn of a server ended; `nothing`: interrupted. */
type Turn = "served" | "nothing" | "gone";

class RequestServer {
  readonly #server: Server;
  readonly #fd: number;
  readonly #crew: ThreadCrew | undefined;
  readonly #progress: RequestProgress | undefined;
  readonly #request: Request;
  readonly #operations = operationTable();
  readonly #trace = createTrace("fuse");

  constructor(server: Server, { fd, dataMax, crew, progress }: RequestServerOptions) {
    this.#server = server;
    this.#fd = fd;
    this.#crew = crew;
    this.#progress = progress;
    this.#request = new Request(dataMax);
    server.tree.dropPagesBy((nodeid) => notifyStalePages(fd, nodeid));
    crew?.join();
  }

  /** Read a request, handle it, and write the reply. */
  serveOne(): Turn {
    const request = this.#request;
    const { input } = request;
    this.#crew?.rest();
    const length = read(this.#fd, input.address, input.length);
    if (length < IN_HEADER_SIZE) return length < 0 ? turnAfterFailure(errno()) : "gone";
    this.#crew?.leave();
    this.#progress?.step();
    const operation = this.#operations[request.opcode] ?? UNKNOWN_OPERATION;
    const result = handle(operation, this.#server, request);
    if (this.#trace.enabled) traceRequest(this.#trace, operation, request, result);
    // Whoever gets the reply may have the next request at once.
    const { tree } = this.#server;
    const stale = tree.takeStaleNodeid();
    if (stale !== 0) notifyStaleAttributes(this.#fd, stale);
    if (!tree.hasLateWork) this.#crew?.join();
    const turn = this.#reply(result);
    if (tree.hasLateWork) {
      tree.finishRequest();
      this.#crew?.join();
    }
    this.#progress?.step();
    return turn;
  }

  #reply(result: number): Turn {
    if (result === NO_REPLY) return "served";
    const replyLength = finishReply(this.#request, result);
    if (write(this.#fd, this.#request.output.address, replyLength) >= 0) return "served";
    return turnAfterFailure(errno());
  }
}

/** Serve requests until the file system is unmounted. */
export function serveRequests(server: Server, options: RequestServerOptions): void {
  const requests = new RequestServer(server, options);
  while (requests.serveOne() !== "gone");
  options.crew?.end();
}

/** The result of a request; a failure becomes a negative errno. A request never ends the daemon. */
function handle(operation: Operation, server: Server, request: Request): number {
  try {
    return operation.handle(server, request);
  } catch (error) {
    return -reportFailure(operation.name, error);
  }
}

/** Put the header before the payload; returns the length of the whole reply. */
function finishReply({ input, output }: Request, result: number): number {
  const length = OUT_HEADER_SIZE + Math.max(result, 0);
  const view = output.view;
  view.setUint32(REPLY.len, length, true);
  view.setInt32(REPLY.error, Math.min(result, 0), true);
  view.setUint32(REPLY.unique, input.view.getUint32(REQUEST.unique, true), true);
  view.setUint32(REPLY.unique + 4, input.view.getUint32(REQUEST.unique + 4, true), true);
  return length;
}

function traceRequest(trace: Trace, operation: Operation, request: Request, result: number): void {
  const node = request.nodeid.toString(16);
  let fields: unknown;
  try {
    fields = request.arguments(operation.fields);
  } catch {
    fields = "(beyond 2^53)";
  }
  trace("%s node %s %o: %s", operation.name, node, fields, outcome(result));
}

/**
 * What a failed call on /dev/fuse means. ENOENT: whoever asked has been interrupted and does not wait
 * any more. Other errors than these mean that nothing can be served.
 */
function turnAfterFailure(number: number): Turn {
  if (number === EINTR || number === ENOENT) return "nothing";
  if (number !== ENODEV) writeLine(`tsimgfs: /dev/fuse: ${errnoName(number)}`);
  return "gone";
}

function outcome(result: number): string {
  if (result === NO_REPLY) return "no reply";
  return result < 0 ? errnoName(-result) : `${result} bytes`;
}
