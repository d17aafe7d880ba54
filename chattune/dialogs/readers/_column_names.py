"""What the columns of tables of messages are called in usual exports, in the languages that they come in."""

from __future__ import annotations

import re
import unicodedata


def plain(name: str) -> str:
    """A column's name without case, accents, spaces and marks between words."""
    letters = "".join(mark for mark in unicodedata.normalize("NFKD", name.casefold()) if not unicodedata.combining(mark))
    return re.sub(r"[\W_]+", "", letters)


def _table(names: str) -> dict[str, int]:
    """The names of a block of text with their places: those that tell more come first."""
    return {plain(name): place for place, name in reversed([*enumerate(names.split())])}


def _roles(user: str, assistant: str) -> dict[str, str]:
    return {**dict.fromkeys(user.split(), "user"), **dict.fromkeys(assistant.split(), "assistant")}


NAMES = {
    "text": _table("""
        text message messages msg content body utterance messagetext messagebody messagecontent chattext msgtext comment said line
        transcript 内容 消息 消息内容 聊天内容 对话内容 发言内容 文本 发言 话语 语句 訊息 訊息內容 對話內容 發言 nachricht
        nachrichtentext inhalt mensaje texto contenido mensagem conteudo contenu texte messaggio testo contenuto сообщение текст
        сообщения 本文 メッセージ 発言 テキスト 메시지 메세지 내용 대화내용 الرسالة نص الرسائل wiadomosc tresc bericht mesaj metin
        pesan isi tinnhan noidung ข้อความ संदेश
    """),
    "speaker": _table("""
        speaker sender from author fromname sendername senderid authorname authorid username user nick nickname name who
        participant participantname party by sentby fromuser speakername speakerid 发言人 说话人 发送者 发送人 发送方 昵称 姓名
        用户名 用户 发言者 說話人 發送者 發言人 暱稱 absender sprecher verfasser autor remitente hablante emisor remetente auteur
        expediteur locuteur mittente autore parlante отправитель автор говорящий имя 送信者 発言者 話者 名前 보낸사람 발신자 화자
        작성자 이름 المرسل nadawca afzender gonderen pengirim nguoigui ผู้ส่ง प्रेषक
    """),
    "role": _table("""
        role senderrole sendertype authorrole authortype speakerrole speakertype usertype userrole participantrole participanttype
        direction messagedirection inout 角色 身份 发送方类型 方向 rolle richtung rol direccion papel direcao ruolo direzione роль
        направление 役割 ロール 역할 الدور rola peran vaitro บทบาท
    """),
    "conversation": _table("""
        conversationid conversation convid convoid convo chatid chat dialogid dialogueid dialog dialogue sessionid session
        threadid thread ticketid ticket ticketnumber caseid case callid call roomid 会话id 会话 会话编号 对话id 对话 对话编号
        对话号 工单 工单号 会话号 會話id 對話id 會話 對話 gesprach gesprachsid konversation konversationsid unterhaltung sitzung
        sitzungsid vorgang vorgangsnummer conversacion idconversacion sesion hilo conversa idconversa sessao idconversation fil
        conversazione sessione диалог беседа разговор сессия чат iddialoga 会話id 会話 セッション スレッド 대화id 대화 대화방 세션
        المحادثة rozmowa gesprek sohbet percakapan cuochoithoai การสนทนา
    """),
    "time": _table("""
        time timestamp date datetime createdat created sentat sent ts when messagetime sendtime messagedate 时间 日期 时间戳
        发送时间 创建时间 发言时间 時間 時間戳 zeit datum zeitstempel uhrzeit zeitpunkt fecha hora fechayhora data datahora heure
        horodatage dateheure ora dataora время дата датаивремя 日時 時刻 送信日時 시간 날짜 일시 보낸시간 الوقت التاريخ czas tijd
        tarih zaman waktu tanggal thoigian เวลา วันที่ समय
    """),
}  # fmt: skip
# What stands in columns of roles and directions beside the usual names of roles.
WORDS = _roles(
    user="""
        in inbound incoming received eingehend 接收 收到 end-user end_user guest buyer patient student
    """,
    assistant="""
        out outbound outgoing sent ausgehend 发送 staff employee admin representative rep seller doctor teacher
    """,
)
# Columns of true and false, and the role of true.
TRUE_IS = _roles(
    user="""
        inbound isinbound incoming fromcustomer iscustomer fromuser isuser
    """,
    assistant="""
        outbound isoutbound outgoing fromagent isagent isbot isassistant fromme isfromme issender issend
    """,
)
