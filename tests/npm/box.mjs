// Seals and opens with tweetnacl what dispatch opens and seals with libsodium. One JSON object a line on stdin:
//
//   {"op": "pair"}                                      -> {"publicKey", "secretKey"}
//   {"op": "seal", "task": {...}, "secretKey", "to"}    -> {"nonce", "ciphertext", "plain": base64 of what was sealed}
//   {"op": "open", "nonce", "ciphertext", "secretKey", "by"} -> {"plain": base64, "text"}, or {"plain": null}
//
// and one JSON object a line on stdout, in the same order.
import { createInterface } from "node:readline";
import nacl from "tweetnacl";
import util from "tweetnacl-util";

const { decodeBase64, encodeBase64, decodeUTF8, encodeUTF8 } = util;

// nacl.box(...) is nacl.box.after(..., nacl.box.before(...)); the second half is the slow one and the same every time.
const shared = new Map();

function sharedKey(theirs, ours) {
  const name = `${theirs} ${ours}`;
  if (!shared.has(name)) shared.set(name, nacl.box.before(decodeBase64(theirs), decodeBase64(ours)));
  return shared.get(name);
}

const operations = {
  pair() {
    const { publicKey, secretKey } = nacl.box.keyPair();
    return { publicKey: encodeBase64(publicKey), secretKey: encodeBase64(secretKey) };
  },
  seal({ task, secretKey, to }) {
    const plain = decodeUTF8(JSON.stringify(task));
    const nonce = nacl.randomBytes(nacl.box.nonceLength);
    const ciphertext = nacl.box.after(plain, nonce, sharedKey(to, secretKey));
    return { nonce: encodeBase64(nonce), ciphertext: encodeBase64(ciphertext), plain: encodeBase64(plain) };
  },
  open({ nonce, ciphertext, secretKey, by }) {
    const plain = nacl.box.open.after(decodeBase64(ciphertext), decodeBase64(nonce), sharedKey(by, secretKey));
    return plain === null ? { plain: null } : { plain: encodeBase64(plain), text: encodeUTF8(plain) };
  },
};

for await (const line of createInterface({ input: process.stdin })) {
  const { op, ...given } = JSON.parse(line);
  console.log(JSON.stringify(operations[op](given)));
}
