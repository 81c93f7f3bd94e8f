"""What caption_writer.py needs to know of a language."""

import dataclasses
from collections.abc import Mapping

# Names of colours and what they stand for, red, green, blue.
COLORS: dict[str, tuple[int, int, int]] = {
  "black": (0, 0, 0),
  "white": (255, 255, 255),
  "gray": (128, 128, 128),
  "red": (205, 30, 35),
  "orange": (245, 130, 15),
  "yellow": (250, 220, 40),
  "green": (20, 135, 50),
  "blue": (25, 70, 200),
  "purple": (115, 35, 150),
  "pink": (250, 150, 190),
  "brown": (110, 65, 25),
}
# What text stands on; "" is a picture of text.
KINDS = ("", "sign", "poster", "page", "label", "book cover", "invoice")
_WORDS = (
  "serif", "sans-serif", "bold", "italic", "vertical", "horizontal", "left",
  "center", "right", "monospace", "handwriting",
)  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Language:
  """Words and templates of one language.

  Attributes:
    marks: opening and closing quotation mark.
    openings: templates with {strings}, and {kind} where they speak of it.
    told: {caption} with its {details}.
    kinds: {one of KINDS: in words}; others are called as "" is.
    comma, both: between two things, and before the last.
    font: "{}" is what the letters look like.
    ink_on_paper: {ink} and {paper} are colours.
    words: {one of _WORDS: in words}.
    colors: {one of COLORS: in words}.
    tells_horizontal: whether horizontal lines are worth a word.
  """

  marks: str
  openings: tuple[str, ...]
  told: str
  kinds: Mapping[str, str]
  comma: str
  both: str
  font: str
  ink_on_paper: str
  words: Mapping[str, str]
  colors: Mapping[str, str]
  tells_horizontal: bool = False


def _language(
  *,
  openings: str,
  kinds: str,
  words: str,
  colors: str,
  marks: str = "“”",
  told: str = "{caption}. {details}.",
  comma: str = ", ",
  both: str,
  font: str,
  ink_on_paper: str,
  tells_horizontal: bool = False,
) -> Language:
  """A Language of lists whose entries are parted by "|"."""

  def entries(written: str) -> tuple[str, ...]:
    return tuple(" ".join(entry.split()) for entry in written.split("|"))

  return Language(
    marks=marks,
    openings=entries(openings),
    told=told,
    # Those behind the end of a shorter list are called as "" is.
    kinds=dict(zip(KINDS, entries(kinds), strict=False)),
    comma=comma,
    both=both,
    font=font,
    ink_on_paper=ink_on_paper,
    words=dict(zip(_WORDS, entries(words), strict=False)),
    colors=dict(zip(COLORS, entries(colors), strict=True)),
    tells_horizontal=tells_horizontal,
  )


# mC4's code -> its words.
LANGUAGES: dict[str, Language] = {
  "en": _language(
    openings="""{kind} that says {strings} | {kind} with the text {strings} |
      {kind} that reads {strings} | {kind} on which is written {strings} |
      {strings} | the text {strings}""",
    told="{caption}, {details}",
    kinds="""a picture | a sign | a poster | a page | a label | a book cover |
      an invoice""",
    both=" and ",
    font="in {} letters",
    ink_on_paper="{ink} on {paper}",
    words="""serif | sans-serif | bold | italic | written vertically |
      written horizontally | aligned left | centered | aligned right |
      monospaced | handwritten""",
    colors="""black | white | gray | red | orange | yellow | green | blue |
      purple | pink | brown""",
  ),
  "de": _language(
    marks="„“",
    openings="""{kind} mit der Aufschrift {strings} | {kind} mit dem Text
      {strings} | Auf dem Bild steht {strings} | {strings} | Text: {strings}""",
    kinds="""Bild | Schild | Plakat | Seite | Etikett | Bucheinband |
      Rechnung""",
    both=" und ",
    font="Schrift: {}",
    ink_on_paper="Farbe: {ink} auf {paper}",
    words="""mit Serifen | serifenlos | fett | kursiv | senkrecht geschrieben |
      waagerecht geschrieben | linksbündig | zentriert | rechtsbündig |
      dicktengleich | handschriftlich""",
    colors="""Schwarz | Weiß | Grau | Rot | Orange | Gelb | Grün | Blau | Lila |
      Rosa | Braun""",
  ),
  "fr": _language(
    marks="«»",
    openings="""{kind} avec le texte {strings} | {kind} où l’on lit {strings} |
      {strings} | Texte : {strings}""",
    kinds="""Image | Panneau | Affiche | Page | Étiquette |
      Couverture de livre | Facture""",
    both=" et ",
    font="police : {}",
    ink_on_paper="couleur : {ink} sur {paper}",
    words="""avec empattements | sans empattement | gras | italique |
      écriture verticale | écriture horizontale | aligné à gauche | centré |
      aligné à droite | chasse fixe | écriture manuscrite""",
    colors="""noir | blanc | gris | rouge | orange | jaune | vert | bleu |
      violet | rose | marron""",
  ),
  "es": _language(
    marks="«»",
    openings="""{kind} con el texto {strings} | {kind} que dice {strings} |
      {strings} | Texto: {strings}""",
    kinds="""Imagen | Letrero | Cartel | Página | Etiqueta | Portada de libro |
      Factura""",
    both=" y ",
    font="letra: {}",
    ink_on_paper="color: {ink} sobre {paper}",
    words="""con serifa | sin serifa | negrita | cursiva | escritura vertical |
      escritura horizontal | alineación a la izquierda | centrado |
      alineación a la derecha | monoespaciada | manuscrita""",
    colors="""negro | blanco | gris | rojo | naranja | amarillo | verde | azul |
      morado | rosa | marrón""",
  ),
  "pt": _language(
    openings="""{kind} com o texto {strings} | {kind} que diz {strings} |
      {strings} | Texto: {strings}""",
    kinds="""Imagem | Placa | Cartaz | Página | Etiqueta | Capa de livro |
      Fatura""",
    both=" e ",
    font="letra: {}",
    ink_on_paper="cor: {ink} sobre {paper}",
    words="""com serifa | sem serifa | negrito | itálico | escrita vertical |
      escrita horizontal | alinhamento à esquerda | centralizado |
      alinhamento à direita | monoespaçada | manuscrita""",
    colors="""preto | branco | cinza | vermelho | laranja | amarelo | verde |
      azul | roxo | rosa | marrom""",
  ),
  "it": _language(
    marks="«»",
    openings="""{kind} con il testo {strings} | {kind} con scritto {strings} |
      {strings} | Testo: {strings}""",
    kinds="""Immagine | Cartello | Manifesto | Pagina | Etichetta |
      Copertina di libro | Fattura""",
    both=" e ",
    font="carattere: {}",
    ink_on_paper="colore: {ink} su {paper}",
    words="""con grazie | senza grazie | grassetto | corsivo |
      scrittura verticale | scrittura orizzontale | allineamento a sinistra |
      centrato | allineamento a destra | a spaziatura fissa | scritto a mano""",
    colors="""nero | bianco | grigio | rosso | arancione | giallo | verde |
      blu | viola | rosa | marrone""",
  ),
  "nl": _language(
    openings="""{kind} met de tekst {strings} | {kind} waarop {strings} staat |
      {strings} | Tekst: {strings}""",
    kinds="Afbeelding | Bord | Poster | Pagina | Etiket | Boekomslag | Factuur",
    both=" en ",
    font="letters: {}",
    ink_on_paper="kleur: {ink} op {paper}",
    words="""met schreef | schreefloos | vet | cursief | verticaal geschreven |
      horizontaal geschreven | links uitgelijnd | gecentreerd |
      rechts uitgelijnd | vaste breedte | handgeschreven""",
    colors="""zwart | wit | grijs | rood | oranje | geel | groen | blauw |
      paars | roze | bruin""",
  ),
  "pl": _language(
    marks="„”",
    openings="""{kind} z napisem {strings} | {kind} z tekstem {strings} |
      {strings} | Tekst: {strings}""",
    kinds="""Obraz | Tablica | Plakat | Strona | Etykieta | Okładka książki |
      Faktura""",
    both=" i ",
    font="czcionka: {}",
    ink_on_paper="kolor liter: {ink}, kolor tła: {paper}",
    words="""szeryfowa | bezszeryfowa | pogrubiona | pochyła | pismo pionowe |
      pismo poziome | wyrównanie do lewej | wyśrodkowanie |
      wyrównanie do prawej | o stałej szerokości | odręczna""",
    colors="""czarny | biały | szary | czerwony | pomarańczowy | żółty |
      zielony | niebieski | fioletowy | różowy | brązowy""",
  ),
  "ru": _language(
    marks="«»",
    openings="""{kind} с надписью {strings} | {kind} с текстом {strings} |
      {strings} | Надпись: {strings}""",
    kinds="""Картинка | Вывеска | Плакат | Страница | Этикетка | Обложка книги |
      Счёт""",
    both=" и ",
    font="шрифт: {}",
    ink_on_paper="цвет букв: {ink}, цвет фона: {paper}",
    words="""с засечками | без засечек | полужирный | курсив |
      вертикальное письмо | горизонтальное письмо |
      выравнивание по левому краю |
      выравнивание по центру | выравнивание по правому краю | моноширинный |
      рукописный""",
    colors="""чёрный | белый | серый | красный | оранжевый | жёлтый | зелёный |
      синий | фиолетовый | розовый | коричневый""",
  ),
  "uk": _language(
    marks="«»",
    openings="""{kind} з написом {strings} | {kind} з текстом {strings} |
      {strings} | Напис: {strings}""",
    kinds="""Зображення | Вивіска | Плакат | Сторінка | Етикетка |
      Обкладинка книги | Рахунок""",
    both=" і ",
    font="шрифт: {}",
    ink_on_paper="колір літер: {ink}, колір тла: {paper}",
    words="""із зарубками | без зарубок | напівжирний | курсив |
      вертикальне письмо | горизонтальне письмо | вирівнювання ліворуч |
      вирівнювання по центру | вирівнювання праворуч | моноширинний |
      рукописний""",
    colors="""чорний | білий | сірий | червоний | помаранчевий | жовтий |
      зелений | синій | фіолетовий | рожевий | коричневий""",
  ),
  "tr": _language(
    openings="""{strings} yazan {kind} | {strings} | Metin: {strings}""",
    kinds="""resim | tabela | afiş | sayfa | etiket | kitap kapağı | fatura""",
    both=" ve ",
    font="yazı tipi: {}",
    ink_on_paper="yazı rengi: {ink}, zemin rengi: {paper}",
    words="""serifli | serifsiz | kalın | italik | dikey yazı | yatay yazı |
      sola hizalı | ortalanmış | sağa hizalı | sabit genişlikli | el yazısı""",
    colors="""siyah | beyaz | gri | kırmızı | turuncu | sarı | yeşil | mavi |
      mor | pembe | kahverengi""",
  ),
  "id": _language(
    openings="""{kind} bertuliskan {strings} | {kind} dengan teks {strings} |
      {strings} | Teks: {strings}""",
    kinds="""Gambar | Papan tanda | Poster | Halaman | Label | Sampul buku |
      Faktur""",
    both=" dan ",
    font="huruf: {}",
    ink_on_paper="warna: {ink} di atas {paper}",
    words="""serif | tanpa serif | tebal | miring | ditulis vertikal |
      ditulis horizontal | rata kiri | rata tengah | rata kanan |
      lebar tetap | tulisan tangan""",
    colors="""hitam | putih | abu-abu | merah | oranye | kuning | hijau | biru |
      ungu | merah muda | cokelat""",
  ),
  "vi": _language(
    openings="""{kind} có dòng chữ {strings} | {kind} ghi {strings} |
      {strings} | Dòng chữ: {strings}""",
    kinds="""Hình ảnh | Biển hiệu | Áp phích | Trang giấy | Nhãn | Bìa sách |
      Hóa đơn""",
    both=" và ",
    font="kiểu chữ: {}",
    ink_on_paper="màu chữ: {ink}, màu nền: {paper}",
    words="""có chân | không chân | đậm | nghiêng | viết dọc | viết ngang |
      căn trái | căn giữa | căn phải | đơn cách | viết tay""",
    colors="""đen | trắng | xám | đỏ | cam | vàng | xanh lục | xanh lam | tím |
      hồng | nâu""",
  ),
  "ar": _language(
    marks="«»",
    openings="""{kind} مكتوب فيها {strings} | {kind} فيها النص {strings} |
      {strings} | النص: {strings}""",
    kinds="صورة | لافتة",
    comma="، ",
    both=" و",
    font="الخط: {}",
    ink_on_paper="لون الحروف: {ink}، لون الخلفية: {paper}",
    words="""مذيّل | غير مذيّل | عريض | مائل | كتابة رأسية | كتابة أفقية |
      محاذاة إلى اليسار | توسيط | محاذاة إلى اليمين | ثابت العرض | خط يد""",
    colors="""أسود | أبيض | رمادي | أحمر | برتقالي | أصفر | أخضر | أزرق |
      بنفسجي | وردي | بني""",
  ),
  "ja": _language(
    marks="「」",
    openings="""{strings}と書かれた{kind} | {strings}という文字の{kind} |
      {strings} | 文字：{strings}""",
    told="{caption}。{details}。",
    kinds="画像 | 看板 | ポスター | ページ | ラベル | 本の表紙 | 請求書",
    comma="、",
    both="と",
    font="書体：{}",
    ink_on_paper="文字色：{ink}、背景色：{paper}",
    words="""明朝体 | ゴシック体 | 太字 | 斜体 | 縦書き | 横書き | 左揃え |
      中央揃え | 右揃え | 等幅 | 手書き""",
    colors="""黒 | 白 | 灰色 | 赤 | オレンジ色 | 黄色 | 緑 | 青 | 紫 | ピンク |
      茶色""",
    tells_horizontal=True,
  ),
  "zh": _language(
    openings="""写着{strings}的{kind} | 带有文字{strings}的{kind} |
      {strings} | 文字：{strings}""",
    told="{caption}。{details}。",
    kinds="图片 | 招牌 | 海报 | 页面 | 标签 | 书的封面 | 发票",
    comma="、",
    both="和",
    font="字体：{}",
    ink_on_paper="文字颜色：{ink}、背景颜色：{paper}",
    words="""宋体 | 黑体 | 粗体 | 斜体 | 竖排 | 横排 | 左对齐 | 居中 | 右对齐 |
      等宽 | 手写""",
    colors="""黑色 | 白色 | 灰色 | 红色 | 橙色 | 黄色 | 绿色 | 蓝色 | 紫色 |
      粉色 | 棕色""",
    tells_horizontal=True,
  ),
  "ko": _language(
    openings="""{strings} 문구가 적힌 {kind} | {strings} 글자가 있는 {kind} |
      {strings} | 글자: {strings}""",
    kinds="그림 | 간판 | 포스터 | 페이지 | 라벨 | 책 표지 | 청구서",
    both=", ",
    font="글꼴: {}",
    ink_on_paper="글자색: {ink}, 배경색: {paper}",
    words="""명조체 | 고딕체 | 굵은 글씨 | 기울임꼴 | 세로쓰기 | 가로쓰기 |
      왼쪽 정렬 | 가운데 정렬 | 오른쪽 정렬 | 고정폭 | 손글씨""",
    colors="""검정 | 하양 | 회색 | 빨강 | 주황 | 노랑 | 초록 | 파랑 | 보라 |
      분홍 | 갈색""",
    tells_horizontal=True,
  ),
}
