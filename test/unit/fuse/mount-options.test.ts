/** The options of -o: values, escapes, and what is refused and why. */

import { describe, expect, it } from "vitest";
import { parseMountOptions } from "../../../src/fuse/mount-options.ts";

const DEFAULTS = {
  readOnly: undefined,
  allowOther: false,
  nonempty: false,
  uid: undefined,
  gid: undefined,
  umask: undefined,
  fsname: undefined,
  maxRead: undefined,
  readAheadKb: undefined,
};

describe("parseMountOptions", () => {
  it.each([[[]], [[""]], [[",,"]], [["nosuid,nodev,default_permissions"]]])(
    "changes nothing for %j",
    (lists) => {
      expect(parseMountOptions(lists)).toEqual(DEFAULTS);
    },
  );

  it("reads all options, of several lists", () => {
    expect(
      parseMountOptions([
        "allow_other,uid=1000,gid=0",
        "nonempty,umask=027,fsname=vm.qcow2",
        "max_read=131072",
        "read_ahead_kb=0,ro",
      ]),
    ).toEqual({
      readOnly: true,
      allowOther: true,
      nonempty: true,
      uid: 1000,
      gid: 0,
      umask: 0o27,
      fsname: "vm.qcow2",
      maxRead: 131072,
      readAheadKb: 0,
    });
  });

  it("takes the last of several values", () => {
    expect(parseMountOptions(["uid=1,uid=2", "uid=3"]).uid).toBe(3);
    expect(parseMountOptions(["ro,rw"]).readOnly).toBe(false);
    expect(parseMountOptions(["rw", "ro"]).readOnly).toBe(true);
  });

  it.each([
    ["fsname=a\\,b", "a,b"],
    ["fsname=a\\\\b", "a\\b"],
    ["fsname=a=b", "a=b"],
    ["fsname=a b\nc", "a b\nc"],
    ["fsname=c\\d", "c\\d"],
  ])("unescapes %j", (list, fsname) => {
    expect(parseMountOptions([list]).fsname).toBe(fsname);
  });

  it.each([
    ["uid=0", "uid", 0],
    ["uid=4294967294", "uid", 4294967294],
    ["umask=0", "umask", 0],
    ["umask=0777", "umask", 0o777],
    ["max_read=4096", "maxRead", 4096],
    ["max_read=1048576", "maxRead", 1048576],
    ["read_ahead_kb=1048576", "readAheadKb", 1048576],
  ] as const)("takes %s", (list, name, value) => {
    expect(parseMountOptions([list])[name]).toBe(value);
  });

  it.each([
    ["uid", "-o uid=: needs a number in 0..4294967294"],
    ["uid=", "-o uid=: needs a number in 0..4294967294"],
    ["uid=-1", "-o uid=-1: needs a number in 0..4294967294"],
    ["uid=4294967295", "-o uid=4294967295: needs a number in 0..4294967294"],
    ["uid=root", "-o uid=root: needs a number in 0..4294967294"],
    ["uid=0x10", "-o uid=0x10: needs a number in 0..4294967294"],
    ["gid=1e3", "-o gid=1e3: needs a number in 0..4294967294"],
    ["umask=8", "-o umask=8: needs an octal number in 0..777"],
    ["umask=1000", "-o umask=1000: needs an octal number in 0..777"],
    ["max_read=4095", "-o max_read=4095: needs a number in 4096..1048576"],
    ["max_read=64k", "-o max_read=64k: needs a number in 4096..1048576"],
    ["fsname", "-o fsname: needs a name"],
    ["fsname=", "-o fsname: needs a name"],
    ["ro=1", "-o ro: takes no value"],
    ["rw=", "-o rw: takes no value"],
    ["allow_other=yes", "-o allow_other: takes no value"],
    ["nonempty=", "-o nonempty: takes no value"],
    ["default_permissions=0", "-o default_permissions: takes no value"],
  ])("refuses %s", (list, message) => {
    expect(() => parseMountOptions([list])).toThrow(
      expect.objectContaining({ name: "UsageError", message }),
    );
  });

  it.each([
    ["allow_root", /^-o allow_root: .*use allow_other/],
    ["subtype=x", /^-o subtype: is always tsimgfs/],
    ["noatime", /^-o noatime: unknown option; there are ro, rw, /],
    ["UID=1", /^-o UID=1: unknown option/],
    ["allow_othr", /: unknown option; did you mean allow_other\? there are ro, rw, /],
    ["non-empty", /; did you mean nonempty\? /],
    ["nodve", /; did you mean nodev\? /],
    ["xx", /: unknown option; there are /],
    ["=1", /^-o =1: unknown option/],
    ["__proto__", /^-o __proto__: unknown option/],
    ["constructor=1", /^-o constructor=1: unknown option/],
    ["a\nb", /^-o a\\x0ab: unknown option/],
  ])("refuses %j with a reason", (list, reason) => {
    expect(() => parseMountOptions([list])).toThrow(reason);
  });
});
