/** What nobody may do: what there is follows from the images, and so does whose it is. */

import { constants } from "node:os";
import type { Done, FuseOperations } from "./fuse-native.ts";

const { EOPNOTSUPP, EPERM } = constants.errno;

type Refused =
  | "chmod"
  | "chown"
  | "create"
  | "link"
  | "mkdir"
  | "mknod"
  | "removexattr"
  | "rename"
  | "rmdir"
  | "symlink"
  | "unlink";

export class RefusedOperations implements Pick<FuseOperations, Refused> {
  chmod(_path: string, _mode: number, done: Done): void {
    done(-EPERM);
  }

  chown(_path: string, _uid: number, _gid: number, done: Done): void {
    done(-EPERM);
  }

  create(_path: string, _mode: number, done: Done): void {
    done(-EPERM);
  }

  link(_path: string, _target: string, done: Done): void {
    done(-EPERM);
  }

  mkdir(_path: string, _mode: number, done: Done): void {
    done(-EPERM);
  }

  mknod(_path: string, _mode: number, _device: number, done: Done): void {
    done(-EPERM);
  }

  removexattr(_path: string, _name: string, done: Done): void {
    done(-EOPNOTSUPP);
  }

  rename(_path: string, _target: string, done: Done): void {
    done(-EPERM);
  }

  rmdir(_path: string, done: Done): void {
    done(-EPERM);
  }

  symlink(_target: string, _path: string, done: Done): void {
    done(-EPERM);
  }

  unlink(_path: string, done: Done): void {
    done(-EPERM);
  }
}
